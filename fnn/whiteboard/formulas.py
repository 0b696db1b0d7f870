# ruff: noqa: RUF001 - formulas are written as on a board
"""What every block computes and its local derivatives, as one writes them on a board.

A block of your own needs no entry: it is drawn with its name, and its numbers are the same. For a
formula, give it a kind, ``fnn.Kind("cube")``, and add that to the table:
``fnn.whiteboard.FORMULAS["cube"] = Formula("{y} = {0}³", ("3 {0}²",))``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from fnn.block import Block
from fnn.whiteboard.array_text import number


class Described(NamedTuple):
    """A block's name and :class:`fnn.block.Kind` without its functions, so that the traces of one
    network compare equal.
    """

    name: str
    maker: str
    args: tuple[Any, ...] = ()
    of: tuple[Described, ...] = ()


def described(block: Block) -> Described:
    """The block's name and kind, and those of the blocks it wraps.

    >>> import fnn
    >>> described(fnn.freeze(fnn.power(2))).of
    (Described(name='power(2)', maker='power', args=(2,), of=()),)
    """
    kind = block.kind
    args = tuple(a if isinstance(a, (str, int, float, tuple, type(None))) else repr(a)
                 for a in kind.args)  # fmt: skip
    return Described(block.name, kind.maker, args, tuple(map(described, kind.of)))


class Formula(NamedTuple):
    """Templates in the names of the inputs, {0}, {1}, ..., and of the output, {y}.

    ``value``: what forward computes.
    ``local``: for each input, the local derivative of y by it; the last stands for all further
    ones. Where that is a matrix, the product that backward computes, such as ``d{0} = d{y} Wᵀ``.
    ``params``: the same for each parameter.
    ``symbol``: what stands in the circle of a gate; blocks without one are boxes.
    ``elementwise``: each entry of y depends on the inputs' entries at its place alone, so that
    downstream is upstream times local, number by number.
    ``arguments``: symbols for the kind's ``args``, such as a slope; ``{slope}`` in a template is
    its value, or the symbol where the value is not known.

    >>> FORMULAS["multiply"].written(FORMULAS["multiply"].value, ("q", "z"), "f")
    'f = q z'
    """

    value: str
    local: tuple[str, ...]
    params: Mapping[str, str] = {}
    symbol: str = ""
    elementwise: bool = False
    arguments: tuple[str, ...] = ()

    def written(self, template: str, inputs: Sequence[str], y: str) -> str:
        """The template with names in it."""
        names = (*inputs, *(f"x{i + 1}" for i in range(len(inputs), 4)))
        return template.format(*names, y=y)

    def local_of(self, i: int, inputs: Sequence[str], y: str) -> str:
        """The equation of the local derivative by input number ``i``.

        >>> FORMULAS["concatenate"].local_of(2, ("a", "b", "c"), "y")
        'dc: its part of dy'
        """
        local = self.local[min(i, len(self.local) - 1)]
        # Where the last stands for further inputs, this input takes the place of the first.
        names = (inputs[i], *inputs[:i], *inputs[i + 1 :]) if i >= len(self.local) else inputs
        written = self.written(local, names, y)
        # Asked of the template, because names, too, may begin with a d.
        return written if local.startswith("d{") else f"d{y}/d{inputs[i]} = {written}"

    def filled(self, args: Sequence[Any]) -> Formula:
        """With the block's arguments in place of their symbols.

        >>> FORMULAS["scale"].filled((-2.0,)).value, FORMULAS["scale"].filled(()).value
        ('{y} = −2 {0}', '{y} = c {0}')
        """
        numbers = {
            symbol: number(value)
            for symbol, value in zip(self.arguments, args, strict=False)
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }

        def fill(template: str, texts: Mapping[str, str] = numbers) -> str:
            for symbol in self.arguments:
                hole, text = f"{{{symbol}}}", texts.get(symbol, symbol)
                if text == "1":  # as a factor or divisor it is not written
                    template = re.sub(f"{re.escape(hole)} (?=[\\w({{])", "", template)
                    template = template.replace(f"/{hole})", ")")
                template = template.replace(hole, text)
            return template

        symbol = fill(self.symbol)
        symbol = symbol if len(symbol) < 5 else fill(self.symbol, {})  # to fit in the circle
        return self._replace(
            value=fill(self.value), local=tuple(map(fill, self.local)), symbol=symbol
        )

    def without(self, params: Collection[str]) -> Formula:
        """Without the terms of parameters that the block was made without, such as a bias."""

        def drop(template: str) -> str:
            for leaf in params:
                template = template.replace(f" + {leaf}", "").replace(f" {leaf}", "")
            return template

        return self._replace(value=drop(self.value), local=tuple(map(drop, self.local)))


def _gate(symbol: str, value: str, *local: str, arguments: tuple[str, ...] = ()) -> Formula:
    return Formula(value, local, {}, symbol, elementwise=True, arguments=arguments)


def _curve(symbol: str, value: str, slope: str, *arguments: str) -> Formula:
    return _gate(symbol, "{y} = " + value, slope, arguments=arguments)


_AFFINE = Formula(
    "{y} = {0} W + b", ("d{0} = d{y} Wᵀ",), {"w": "dW = {0}ᵀ d{y}", "b": "db = Σ d{y}"}
)
_NORM_PARAMS = {"scale": "dscale = Σ d{y} ẑ", "bias": "dbias = Σ d{y}"}
_NORM_BACK = "d{0} = (s − mean s − ẑ mean(s ẑ)) / σ,  s = scale d{y}"
_BINARY = "{y} = −Σ (t ln p + (1 − t) ln(1 − p)) / n"

FORMULAS: dict[str, Formula] = {
    # gates
    "add": _gate("+", "{y} = {0} + {1}", "1"),
    "subtract": _gate("−", "{y} = {0} − {1}", "1", "−1"),
    "multiply": _gate("×", "{y} = {0} {1}", "{1}", "{0}"),
    "divide": _gate("÷", "{y} = {0} / {1}", "1/{1}", "−{0}/{1}²"),
    "maximum": _gate("max", "{y} = max({0}, {1})", "[{0} > {1}]", "[{1} > {0}]"),
    "minimum": _gate("min", "{y} = min({0}, {1})", "[{0} < {1}]", "[{1} < {0}]"),
    "power": _gate("xᵖ", "{y} = {0}ᵖ", "p {0}^(p−1)", "{y} ln {0}"),
    "negate": _gate("−", "{y} = −{0}", "−1"),
    "scale": _gate("·{c}", "{y} = {c} {0}", "{c}", arguments=("c",)),
    "exp": _gate("exp", "{y} = exp {0}", "{y}"),
    "log": _gate("ln", "{y} = ln {0}", "1/{0}"),
    "square": _gate("x²", "{y} = {0}²", "2 {0}"),
    "sqrt": _gate("√", "{y} = √{0}", "1/(2 {y})"),
    "sum": Formula("{y} = Σ {0}", ("1",), {}, "Σ"),
    "mean": Formula("{y} = Σ {0} / n", ("1/n",), {}, "mean"),
    # nonlinearities
    "identity": _curve("id", "{0}", "1"),
    "step": _curve("step", "[{0} ≥ 0]", "0"),
    "logistic": _curve("σ", "σ({0})", "σ′({0}) = {y} (1 − {y})"),
    "tanh": _curve("tanh", "tanh {0}", "tanh′({0}) = 1 − {y}²"),
    "relu": _curve("relu", "max({0}, 0)", "relu′({0}) = [{0} > 0]"),
    "leaky_relu": _curve("lrelu", "{0} if {0} > 0, else {a} {0}", "1 if {0} > 0, else {a}", "a"),
    "elu": _curve("elu", "{0} if {0} > 0, else {a} (e^{0} − 1)", "1 if {0} > 0, else {a} e^{0}",
                  "a"),
    "selu": _curve("selu", "λ elu({0})", "λ if {0} > 0, else λ a e^{0}"),
    "celu": _curve("celu", "{0} if {0} > 0, else {a} (e^({0}/{a}) − 1)",
                   "1 if {0} > 0, else e^({0}/{a})", "a"),
    "softplus": _curve("soft+", "ln(1 + e^{0})", "σ({0})"),
    "softsign": _curve("ssign", "{0} / (1 + |{0}|)", "1 / (1 + |{0}|)²"),
    "silu": _curve("silu", "{0} σ({0})", "σ({0}) (1 + {0} (1 − σ({0})))"),
    "mish": _curve("mish", "{0} tanh(softplus {0})", "{y}/{0} + {0} σ({0}) sech²(softplus {0})"),
    "gelu": _curve("gelu", "{0} Φ({0})", "Φ({0}) + {0} φ({0})"),
    "hard_sigmoid": _curve("hσ", "min(max({0} + 3, 0), 6)/6", "1/6 if |{0}| < 3, else 0"),
    "hard_tanh": _curve("htanh", "min(max({0}, −1), 1)", "[|{0}| < 1]"),
    "absolute": _curve("|x|", "|{0}|", "sign {0}"),
    "softmax": Formula("{y} = exp({0}) / Σ exp({0})", ("d{0} = {y} (d{y} − Σ {y} d{y})",)),
    "log_softmax": Formula("{y} = {0} − ln Σ exp({0})", ("d{0} = d{y} − softmax({0}) Σ d{y}",)),
    # layers
    "linear": _AFFINE,
    "conv": Formula("{y} = {0} ∗ W + b", ("d{0} = d{y} ∗ flipped W",),
                    {"w": "dW = {0} ∗ d{y}", "b": "db = Σ d{y}"}),
    "conv_transpose": Formula("{y} = {0} ∗ᵀ W + b", ("d{0} = d{y} ∗ W",),
                              {"w": "dW = d{y} ∗ {0}", "b": "db = Σ d{y}"}),
    "dropout": Formula("{y} = mask {0} / (1 − {rate})", ("d{0} = mask d{y} / (1 − {rate})",),
                       arguments=("rate",)),
    "max_pool": Formula("{y} = max of each window", ("d{0}: d{y} to the winner of each window",)),
    "avg_pool": Formula("{y} = mean of each window", ("d{0}: d{y} / n to all of each window",)),
    "global_avg_pool": Formula("{y} = mean over places", ("d{0}: d{y} / n to every place",)),
    "local_response_norm": Formula(
        "{y} = {0} / u^{β},  u = {k} + ({α}/{n}) Σ {0}²",
        ("d{0} = d{y} / u^{β} − c {0} Σ d{y} {0} / u^({β}+1),  c = 2·{α}·{β}/{n}",),
        arguments=("n", "α", "β", "k"),
    ),
    "layer_norm": Formula("{y} = ẑ scale + bias,  ẑ = ({0} − mean)/σ", (_NORM_BACK,), _NORM_PARAMS),
    "rms_norm": Formula(
        "{y} = ẑ scale,  ẑ = {0}/σ,  σ² = mean({0}²)",
        ("d{0} = (g − ẑ mean(g ẑ))/σ,  g = d{y} scale",),
        {"scale": "dscale = Σ d{y} ẑ"},
    ),
    **dict.fromkeys(
        ("batch_norm", "group_norm", "instance_norm"),
        Formula("{y} = ẑ scale + bias,  ẑ = ({0} − mean)/σ", (_NORM_BACK,), _NORM_PARAMS),
    ),
    "dot_product_attention": Formula(
        "{y} = P {2},  P = softmax(c {0} {1}ᵀ)",
        ("d{0} = c dS {1},  dS = P (d{y} {2}ᵀ − d{y}·{y})", "d{1} = c dSᵀ {0}", "d{2} = Pᵀ d{y}",
         "no derivative: a mask"),
    ),
    "split_heads": Formula("{y} = {0} in heads", ("d{0}: d{y}, side by side",)),
    "merge_heads": Formula("{y} = heads of {0}, side by side", ("d{0}: d{y} in heads",)),
    "position_embedding": Formula("{y} = {0} + W at its place", ("d{0} = d{y}",),
                                  {"w": "dW = Σ d{y} of each place"}),
    "rnn_step": Formula(
        "{y} = tanh({0} + {1} U)", ("d{0} = d{y} tanh′", "d{1} = d{0} Uᵀ"), {"w": "dU = {1}ᵀ d{0}"}
    ),
    "gru_step": Formula(
        "{y} = (1 − u) n + u {1},  n = tanh({0} + r ({1} U + b))",
        ("d{0} = (dr, du, dn),  dn = d{y} (1 − u) tanh′", "d{1} = u d{y} + (dr, du, dn r) Uᵀ"),
        {"w": "dU = {1}ᵀ (dr, du, dn r)", "b": "db = Σ dn r"},
    ),
    "lstm_step": Formula(
        "{y} = o tanh c′,  c′ = f c + i g,  (i, f, g, o) of {0} + h U",
        ("d{0} = (di, df, dg, do),  dc′ = d{y} o tanh′", "dh = d{0} Uᵀ,  dc = f dc′"),
        {"w": "dU = hᵀ d{0}"},
    ),
    "unembedding": Formula("{y} = {0} Wᵀ", ("d{0} = d{y} W",), {"w": "dW = d{y}ᵀ {0}"}),
    "rotary": Formula("{y} = {0} turned by u,  u ~ its place",
                      ("d{0} = d{y} turned by −u", "no derivative: whole numbers")),
    "embedding": Formula("{y} = row {0} of W", ("no derivative: whole numbers",),
                         {"w": "dW: d{y} added to row {0}"}),
    # losses: the mean over n examples
    "squared_error": Formula("{y} = Σ ½({0} − {1})² / n", ("({0} − {1})/n", "({1} − {0})/n")),
    "binary_cross_entropy": Formula(_BINARY, ("(p − t)/n,  p = σ({0})", "−{0}/n")),
    "linear_softmax_cross_entropy": Formula(
        "{y} = −Σ ln p_{1} / n,  p = softmax(h Wᵀ)",
        ("dh = dz W,  dW = dzᵀ h,  dz = (p − [j = {1}])/n", "none"),
    ),
    "softmax_cross_entropy": Formula(
        "{y} = −Σ ln p[t] / n,  p = softmax({0})", ("(p − t)/n", "−ln p / n")
    ),
    "cross_entropy": Formula("{y} = −Σ t ln {0} / n", ("−t/({0} n)", "−ln {0} / n")),
    # wiring
    "concatenate": Formula("{y} = all of them joined", ("d{0}: its part of d{y}",)),
    "flatten": Formula("{y} = {0}, one row an example", ("d{0} = d{y}, reshaped",)),
    "item": Formula("{y} = {0}[{i}]", ("d{0}: d{y} to that one",), arguments=("i",)),
}  # fmt: skip

_SUPERSCRIPTS = str.maketrans("−0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _of_power(p: float) -> Formula:
    """The formula of a power with a fixed exponent.

    >>> _of_power(3).local, _of_power(-1).local, _of_power(0.5).value
    (('3 {0}²',), ('−{0}⁻²',), '{y} = {0}^0.5')
    """

    def power(p: float) -> str:
        text = number(p)
        if p == int(p) and "e" not in text:
            return "{0}" if p == 1 else "{0}" + text.translate(_SUPERSCRIPTS)
        return "{0}^" + (f"({text})" if p < 0 else text)

    factor = "" if p == 1 else "−" if p == -1 else number(p) + " "
    slope = number(p) if p in (0, 1) else factor + power(p - 1)
    sign = power(p).replace("{0}", "x")
    symbol = sign if len(sign) < 4 else "xᵖ"
    return FORMULAS["power"]._replace(value="{y} = " + power(p), local=(slope,), symbol=symbol)


_GELU_TANH = _curve("gelu", "{0} (1 + tanh u)/2,  u = √(2/π)({0} + 0.0447 {0}³)",
                    "(1 + tanh u)/2 + {0} sech²u u′/2")  # fmt: skip
_OF_PROBABILITIES = Formula(_BINARY, ("(p − t)/(n p(1−p)),  p = {0}", "(ln(1−p) − ln p)/n"))

AFFINE = ("linear", "conv", "conv_transpose")
_NAMES = tuple(FORMULAS)
NONLINEARITIES = _NAMES[_NAMES.index("identity") : _NAMES.index("linear")]
LOSSES = tuple(name for name in FORMULAS if name == "squared_error" or "cross_entropy" in name)

_NOTES = {
    "freeze": "its parameters are not trained",
    "rematerialize": "keeps little; backward runs forward again",
    "repeat": "several blocks in a row, their parameters stacked",
    "recurrent": "the same cell at every step",
    "straight_through": "on purpose the gradient of another function",
}


def formula_of(kind: Described) -> Formula | None:
    """The formula of a block, with its arguments filled in; None where the table has none.

    >>> import fnn
    >>> formula_of(described(fnn.logistic())).local
    ('σ′({0}) = {y} (1 − {y})',)
    >>> formula_of(described(fnn.freeze(fnn.leaky_relu(0.1)))).local
    ('1 if {0} > 0, else 0.1',)
    """
    match kind:
        case Described(maker="power", args=(p,)):
            return _of_power(p)
        case Described(maker="elementwise"):
            name = _literal(kind.name)
            return _curve("f", f"{name}({{0}})", f"{name}′({{0}})")
        case Described(maker="gelu", args=(True,)):
            return _GELU_TANH
        case Described(maker="binary_cross_entropy", args=(False,)):
            return _OF_PROBABILITIES
        case Described(maker="freeze", of=(inner,)):
            return formula_of(inner)
        case Described(maker="rematerialize", of=(inner,)) if formula := formula_of(inner):
            return formula._replace(symbol="")  # a box, which has room for its note
        case Described(maker="straight_through", of=(block, surrogate)):
            formula = formula_of(surrogate)
            slope = formula.local[0] if formula else "its derivative"
            return Formula(
                f"{{y}} = {_literal(block.name)}({{0}})",
                (f"{slope}, of {_literal(surrogate.name)}",),
                elementwise=bool(formula and formula.elementwise),
            )
        case Described(maker="repeat" | "rematerialize" | "recurrent"):
            return Formula("{y} = f({0})", ("d{0}: the chain rule through f",))
    formula = FORMULAS.get(kind.maker)
    return formula and formula.filled(kind.args)


def is_elementwise(kind: Described) -> bool:
    """Whether downstream is upstream times local, number by number."""
    formula = formula_of(kind)
    return formula is not None and formula.elementwise


def _literal(name: str) -> str:
    """A name as it has to stand in a template."""
    return name.replace("{", "{{").replace("}", "}}")


def note_of(kind: Described) -> str:
    """What a reader should know about a block besides its formula, or ''.

    >>> import fnn
    >>> note_of(described(fnn.freeze(fnn.linear(3))))
    'its parameters are not trained'
    """
    return _NOTES.get(kind.maker, "")
