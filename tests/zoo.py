"""The one table of every public block, with inputs. tests/blocks/test_zoo.py crosses it with every
property; a public block without a row here fails the suite (test_every_public_block_has_a_row).

A new block needs one row for each way of using it: ``Case(id, make, inputs)``, with an id that
starts with the block's public name, and what is special about it (see ``Case``). Rows after the
first go into ``further(...)``.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import fnn
from fnn.arrays import is_floating
from fnn.block import Block

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
Shape = tuple[int, ...]

# ---- how inputs are drawn --------------------------------------------------------------------


def away_from(*kinks: float, scale: float = 1.0) -> Draw:
    """Normal numbers, none within 0.05 of a kink, where finite differences mean nothing."""

    def draw(rng: np.random.Generator, shape: Shape) -> np.ndarray:
        x = scale * rng.standard_normal(shape)
        for kink in kinks:
            x = np.where(np.abs(x - kink) < 0.05, kink + np.where(x < kink, -0.1, 0.1), x)
        return x

    return draw


def between(low: float, high: float) -> Draw:
    return lambda rng, shape: rng.uniform(low, high, shape)


def labels(classes: int) -> Draw:
    return lambda rng, shape: rng.integers(0, classes, shape).astype(np.int32)


def probability_rows(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    p = rng.uniform(0.1, 1, shape)
    return p / p.sum(-1, keepdims=True)


def mask(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """True and False, both at least once."""
    return np.arange(int(np.prod(shape))).reshape(shape) % 3 != 1


normal, positive, unit = away_from(), between(0.3, 3), between(0.1, 0.9)


class In(NamedTuple):
    """An input array: the batch axes (if batched), then ``shape``."""

    shape: Shape = ()
    draw: Draw = normal
    batched: bool = True


def fixed(*shape: int, draw: Draw = normal) -> In:
    return In(shape, draw, batched=False)


# ---- the rows --------------------------------------------------------------------------------


class Case(NamedTuple):
    """A row of the table.

    ``id``: the public name of the block, and after a "/" what is special in this row. ``further``:
    this is not the first row of its block, so that test_zoo.py runs fewer tests on it.
    ``inputs``: one is given as it is, several as a tuple. ``batch``: the batch axes of every
    batched input. ``batches``: other batch axes with which the block works as well.
    ``separable``: what a batch is of its parts: "rows" of outputs, their "mean" (a loss), or
    None where the question has no meaning. ``frozen``: the beginnings of the paths of parameters
    that have no gradient. ``surrogate``: backward is on purpose not forward's derivative.
    ``plain``: ``(params, x) -> y``, the formula as one would write it in JAX; its values are
    compared, and what jax.vjp keeps for it bounds the residuals. ``ulps``: how many units of the
    lower precision low-precision results may be off, relative to the largest in their array.
    ``unused``: residuals that backward does not use, with the reason. ``bytes_over``: why more
    residual bytes are kept than jax.vjp would keep. ``step``: of finite differences, small where
    many kinks are near. ``noted``: what fnn.check notes of it in other dtypes or at infinity.
    """

    id: str
    make: Callable[[], Block]
    inputs: tuple[In, ...] = (In(),)
    batch: Shape = (2, 3)
    batches: tuple[Shape, ...] = ()
    separable: str | None = "rows"
    needs_key: bool = False
    frozen: tuple[str, ...] = ()
    surrogate: bool = False
    plain: Callable[[Any, Any], Any] | None = None
    ulps: float = 4.0
    unused: str = ""
    bytes_over: str = ""
    step: float = 0.01
    noted: tuple[str, ...] = ()
    further: bool = False

    @property
    def name(self) -> str:
        """The public name of the block that this row is about."""
        return self.id.split("/")[0]


def further(*cases: Case) -> list[Case]:
    return [case._replace(further=True) for case in cases]


ANY = ((), (1,), (0,), (2, 1, 2), (1, 2, 1, 2))  # ranks 0 to 4, batch 1, batch 0
ROWS = ((3,), (1,), (0,), (2, 1, 2))  # for losses, whose batch is at least one axis
XY = (In(), In())


def nonlinearities() -> list[Case]:
    def row(
        id: str, make: Callable[[], Block], plain: Any = None, draw: Draw = normal, **more: Any
    ):
        plain = plain and (lambda params, x, f=plain: f(x))
        return Case(id, make, (In((), draw),), batches=ANY, plain=plain, **more)

    kink = away_from(0)
    classes = {"inputs": (In((4,), away_from(scale=2)),), "batch": (2,), "batches": ANY}
    return [
        row("identity", fnn.identity, lambda x: x),
        row("step", fnn.step, lambda x: (x >= 0).astype(x.dtype), kink),
        row("logistic", fnn.logistic, jax.nn.sigmoid),
        row("tanh", fnn.tanh, jnp.tanh),
        row("relu", fnn.relu, lambda x: jnp.maximum(x, 0), kink),
        row("leaky_relu", fnn.leaky_relu, jax.nn.leaky_relu, kink),
        *further(
            row("leaky_relu/slope", lambda: fnn.leaky_relu(0.3),
                lambda x: jax.nn.leaky_relu(x, 0.3), kink)),
        row("hard_tanh", fnn.hard_tanh, lambda x: jnp.clip(x, -1, 1), away_from(-1, 1)),
        row("hard_sigmoid", fnn.hard_sigmoid, jax.nn.hard_sigmoid, away_from(-3, 3, scale=3)),
        row("absolute", fnn.absolute, jnp.abs, kink),
        row("elu", fnn.elu, jax.nn.elu, kink),
        *further(
            row("elu/alpha", lambda: fnn.elu(0.4), lambda x: jax.nn.elu(x, 0.4), kink)),
        row("selu", fnn.selu, jax.nn.selu, kink),
        row("celu", fnn.celu, jax.nn.celu, kink),
        *further(
            row("celu/alpha", lambda: fnn.celu(1.7), lambda x: jax.nn.celu(x, 1.7), kink)),
        row("softplus", fnn.softplus, jax.nn.softplus),
        row("softsign", fnn.softsign, jax.nn.soft_sign, kink),
        row("silu", fnn.silu, jax.nn.silu),
        row("mish", fnn.mish, lambda x: x * jnp.tanh(jnp.log1p(jnp.exp(x)))),
        row("gelu", fnn.gelu, lambda x: x * jax.scipy.stats.norm.cdf(x)),
        *further(
            row("gelu/approximate", lambda: fnn.gelu(approximate=True), jax.nn.gelu)),
        row("elementwise", lambda: fnn.elementwise("cube", lambda x: x * x * x,
                                                   lambda x: 3 * x * x), lambda x: x**3),
        *further(
            row("elementwise/from y",
                lambda: fnn.elementwise("exp", jnp.exp, lambda y: y, keep="y"), jnp.exp)),
        row("straight_through", lambda: fnn.straight_through(fnn.step(), fnn.logistic()),
            lambda x: (x >= 0).astype(x.dtype), kink, surrogate=True,
            bytes_over="what the surrogate needs; a plain step needs nothing"),
        Case("softmax", fnn.softmax, plain=lambda _, x: jax.nn.softmax(x), **classes),
        *further(
            Case("softmax/axis", lambda: fnn.softmax(axis=0), separable=None,
                 plain=lambda _, x: jax.nn.softmax(x, axis=0))),
        Case("log_softmax", fnn.log_softmax, plain=lambda _, x: jax.nn.log_softmax(x),
             ulps=8, **classes),
        *further(
            Case("log_softmax/axis", lambda: fnn.log_softmax(axis=0), separable=None, ulps=8,
                 plain=lambda _, x: jax.nn.log_softmax(x, axis=0))),
    ]  # fmt: skip


def gates() -> list[Case]:
    apart = (In((), between(-2, -0.1)), In((), between(0.1, 2)))  # no ties
    divisor, stretch = In((), positive), (fixed(3, 1), fixed(2, 3, 4))

    def two(
        id: str, make: Callable[[], Block], inputs: tuple[In, ...], f: Any, **more: Any
    ) -> Case:
        def plain(params: Any, x: Any) -> Any:
            with jax.numpy_rank_promotion("allow"):
                return f(*x)

        free = all(i.batched for i in inputs)
        more = {"batches": ANY if free else (), "separable": "rows" if free else None} | more
        return Case(id, make, inputs, plain=plain, **more)

    def reduction(make: Callable[..., Block], f: Any, id: str, shape: Shape, **args: Any) -> Case:
        plain = lambda params, x: f(x, **args)  # noqa: E731
        return Case(id, lambda: make(**args), (fixed(*shape),), separable=None, plain=plain)

    def reductions(name: str, make: Callable[..., Block], f: Any) -> list[Case]:
        first = reduction(make, f, name, (2, 3))
        others = [
            reduction(make, f, f"{name}/axis", (2, 3, 2), axis=1),
            reduction(make, f, f"{name}/negative axis", (2, 3), axis=-1),
            reduction(make, f, f"{name}/axes", (2, 3, 2), axis=(0, -1)),
            reduction(make, f, f"{name}/keepdims", (2, 3, 2), axis=(1,), keepdims=True),
            reduction(make, f, f"{name}/all, keepdims", (2, 3), keepdims=True),
            reduction(make, f, f"{name}/no axes", (2, 3), axis=()),
            reduction(make, f, f"{name}/scalar", ()),
            reduction(make, f, f"{name}/empty axis", (0, 3), axis=1),
        ]
        return [first, *further(*others)]

    def single(id: str, make: Callable[[], Block], f: Any, draw: Draw = normal) -> Case:
        return Case(id, make, (In((), draw),), batches=ANY, plain=lambda _, x: f(x))

    return [
        two("add", fnn.add, XY, lambda x, y: x + y),
        *further(
            two("add/broadcast", fnn.add, stretch, lambda x, y: x + y),
            two("add/scalar", fnn.add, (fixed(), fixed(2, 3)), lambda x, y: x + y),
            two("add/outer", fnn.add, (fixed(3, 1), fixed(1, 2)), lambda x, y: x + y),
            two("add/three", fnn.add, (In(), In(), In()), lambda x, y, z: x + y + z),
            two("add/four, broadcast", fnn.add, (fixed(), fixed(3), fixed(2, 1), fixed(2, 3)),
                lambda a, b, c, d: a + b + c + d)),
        two("subtract", fnn.subtract, XY, lambda x, y: x - y),
        *further(
            two("subtract/broadcast", fnn.subtract, stretch, lambda x, y: x - y)),
        two("multiply", fnn.multiply, XY, lambda x, y: x * y),
        *further(
            two("multiply/broadcast", fnn.multiply, stretch, lambda x, y: x * y),
            two("multiply/scalar", fnn.multiply, (fixed(2, 3), fixed()), lambda x, y: x * y),
            two("multiply/empty", fnn.multiply, (fixed(0, 3), fixed(1, 3)), lambda x, y: x * y)),
        two("divide", fnn.divide, (In(), divisor), lambda x, y: x / y),
        *further(
            two("divide/broadcast", fnn.divide, (fixed(2, 3), fixed(2, 1, draw=positive)),
                lambda x, y: x / y)),
        two("maximum", fnn.maximum, apart, jnp.maximum),
        *further(
            two("maximum/broadcast", fnn.maximum,
                (fixed(3, 1, draw=between(-2, -0.1)), fixed(2, 3, 2, draw=between(0.1, 2))),
                jnp.maximum)),
        two("minimum", fnn.minimum, apart, jnp.minimum),
        *further(
            two("minimum/scalar", fnn.minimum, (fixed(), fixed(2, 3, draw=between(3, 4))),
                jnp.minimum)),
        two("power", fnn.power, (In((), positive), In()), jnp.power, ulps=8),
        *further(
            two("power/broadcast", fnn.power, (fixed(3, 1, draw=positive), fixed(2, 1, 2)),
                jnp.power, ulps=8),
            single("power/2", lambda: fnn.power(2), jnp.square),
            single("power/-1", lambda: fnn.power(-1), jnp.reciprocal, positive),
            single("power/0", lambda: fnn.power(0), jnp.ones_like),
            single("power/0.5", lambda: fnn.power(0.5), jnp.sqrt, positive)),
        single("negate", fnn.negate, jnp.negative),
        single("scale", lambda: fnn.scale(-0.3), lambda x: -0.3 * x),
        single("exp", fnn.exp, jnp.exp),
        single("log", fnn.log, jnp.log, positive),
        single("square", fnn.square, jnp.square),
        single("sqrt", fnn.sqrt, jnp.sqrt, positive),
        *reductions("sum", fnn.sum, jnp.sum),
        *reductions("mean", fnn.mean, jnp.mean),
        Case("flatten", fnn.flatten, (In((2, 2)),), batch=(2,), batches=((1,), (0,))),
        *further(
            Case("flatten/keep", lambda: fnn.flatten(keep=2), (In((2, 2)),), batch=(2, 1))),
        Case("concatenate", fnn.concatenate, (In((2,)), In((3,))), batch=(2,), batches=ANY),
        *further(
            Case("concatenate/three, axis", lambda: fnn.concatenate(axis=1),
                 (In((1, 2)), In((3, 2)), In((2, 2))), batch=(2,), batches=((1,), (0,)))),
    ]  # fmt: skip


def layers() -> list[Case]:
    def affine(params: Any, x: Any) -> Any:
        with jax.numpy_rank_promotion("allow"):
            return x @ params["w"] + params["b"]

    features = {"inputs": (In((4,)),), "batch": (2,), "batches": ANY}
    return [
        Case("linear", lambda: fnn.linear(3), plain=affine, **features),
        *further(
            Case("linear/rank 4", lambda: fnn.linear(3), (In((4,)),), batch=(2, 1, 3),
                 plain=affine),
            Case("linear/one vector", lambda: fnn.linear(3), (In((4,)),), batch=(), separable=None),
            Case("linear/no bias", lambda: fnn.linear(3, use_bias=False),
                 plain=lambda params, x: x @ params["w"], **features)),
        Case("neuron", lambda: fnn.neuron(fnn.logistic()), **features),
        *further(
            Case("neuron/no bias", lambda: fnn.neuron(fnn.tanh(), use_bias=False), **features)),
        Case("layer", lambda: fnn.layer(3, fnn.tanh()), **features),
        *further(
            Case("layer/no bias", lambda: fnn.layer(3, fnn.relu(), use_bias=False), **features)),
        Case("dropout", lambda: fnn.dropout(0.4), needs_key=True, separable=None, batches=ANY),
        *further(
            Case("dropout/0", lambda: fnn.dropout(0), needs_key=True, batches=ANY)),
    ]  # fmt: skip


def convolutions() -> list[Case]:
    def settings(shape: Shape, options: Any) -> tuple[Any, ...]:
        """Stride, dilation, padding for each axis, groups, and how arrays are laid out."""
        axes = len(shape) - 1
        each = lambda v: (v,) * axes if isinstance(v, int) else tuple(v)  # noqa: E731
        stride, dilation = each(options.get("stride", 1)), each(options.get("dilation", 1))
        padding, space = options.get("padding", "SAME"), "DHW"[-axes:]
        pads = [(padding, padding)] * axes if isinstance(padding, int) else padding
        layout = (f"N{space}C", f"{space}IO", f"N{space}C")
        return stride, dilation, pads, options.get("groups", 1), layout

    def row(id: str, shape: Shape, features: int, kernel: Any, **options: Any) -> Case:
        stride, dilation, pads, groups, layout = settings(shape, options)

        def plain(params: Any, x: Any) -> Any:
            with jax.numpy_rank_promotion("allow"):
                y = jax.lax.conv_general_dilated(
                    x, params["w"], stride, pads, rhs_dilation=dilation,
                    dimension_numbers=layout, feature_group_count=groups,
                )  # fmt: skip
                return y + params.get("b", 0)

        make = lambda: fnn.conv(features, kernel, **options)  # noqa: E731
        return Case(id, make, (In(shape),), batch=(2,), batches=((1,), (0,)), plain=plain)

    def transposed(id: str, shape: Shape, features: int, kernel: Any, **options: Any) -> Case:
        """The plain formula: x with zeros between, convolved with W turned around."""
        stride, dilation, pads, groups, layout = settings(shape, options)
        more = options.get("output_padding", 0)

        def plain(params: Any, x: Any) -> Any:
            w = params["w"]
            spans = [d * (k - 1) + 1 for d, k in zip(dilation, w.shape, strict=False)]
            cut = pads
            if pads == "SAME":
                wide = [n * s for n, s in zip(x.shape[1:], stride, strict=False)]
                cut = lax.padtype_to_pads(wide, spans, stride, "SAME")
                rest = [n - ((n // s - 1) * s + k - sum(p))
                        for n, s, k, p in zip(wide, stride, spans, cut, strict=True)]  # fmt: skip
            else:
                cut = [(0, 0)] * len(spans) if pads == "VALID" else pads
                rest = [more] * len(spans) if isinstance(more, int) else more
            around = [(k - 1 - low, k - 1 - high + r)
                      for k, (low, high), r in zip(spans, cut, rest, strict=True)]  # fmt: skip
            *k, o, i = w.shape
            w = jnp.flip(w, range(len(k))).reshape(*k, o, groups, i // groups)
            w = jnp.swapaxes(w, -3, -1).reshape(*k, i // groups, groups * o)
            with jax.numpy_rank_promotion("allow"):
                y = lax.conv_general_dilated(
                    x, w, (1,) * len(k), around, lhs_dilation=stride, rhs_dilation=dilation,
                    dimension_numbers=layout, feature_group_count=groups,
                )  # fmt: skip
                return y + params.get("b", 0)

        make = lambda: fnn.conv_transpose(features, kernel, **options)  # noqa: E731
        id = f"conv_transpose{id}"
        return Case(id, make, (In(shape),), batch=(2,), batches=((1,), (0,)), plain=plain)

    return [
        row("conv", (4, 5, 2), 3, 3),
        *further(
            row("conv/1x1", (3, 2, 3), 2, 1),
            row("conv/1x1, stride", (5, 4, 2), 3, 1, stride=2),
            row("conv/1x1, padding", (2, 3, 2), 2, 1, padding=1, stride=2),
            row("conv/stride, ragged", (7, 6, 2), 2, 3, stride=2),
            row("conv/stride over the end", (8, 5, 1), 2, (2, 3), stride=(3, 2), padding="VALID"),
            row("conv/stride beyond the kernel", (7, 5, 2), 2, 2, stride=3, padding="VALID"),
            row("conv/even kernel", (5, 4, 1), 2, (2, 4), use_bias=False),
            row("conv/pairs", (4, 3, 2), 2, 3, padding=((2, 0), (1, 3))),
            row("conv/padding beyond the kernel", (3, 3, 1), 2, 2, padding=3, stride=2),
            row("conv/dilation", (6, 7, 2), 2, (3, 2), dilation=(2, 3), padding=2, stride=(1, 2)),
            row("conv/groups", (4, 3, 4), 6, (3, 2), groups=2, stride=(1, 2)),
            row("conv/depthwise", (4, 4, 3), 3, 3, groups=3),
            row("conv/kernel of the input's size", (3, 4, 2), 2, (3, 4), padding="VALID"),
            row("conv/sequence", (6, 2), 3, 3, stride=2),
            row("conv/sequence, dilation, groups", (7, 4), 4, 2, dilation=3, groups=2, padding=2),
            row("conv/volume", (3, 4, 2, 2), 2, (2, 3, 2), stride=(1, 2, 1)),
            row("conv/volume, 1x1, stride", (3, 2, 4, 2), 2, 1, stride=2),
            row("conv/volume, dilation, groups", (3, 4, 3, 4), 2, 2, dilation=(1, 2, 1), groups=2,
                padding=((1, 0), (0, 0), (0, 2)))),
        transposed("", (3, 2, 2), 3, 3, stride=2),
        *further(
            transposed("/stride 1", (3, 4, 2), 2, (3, 2)),
            transposed("/even kernel", (3, 2, 1), 2, 4, stride=2, padding=1, use_bias=False),
            transposed("/output padding", (2, 3, 2), 2, 3, stride=(2, 3), padding=1,
                       output_padding=(1, 2)),
            transposed("/valid, stride beyond the kernel", (2, 3, 2), 2, 2, stride=3,
                       padding="VALID"),
            transposed("/same, stride beyond the kernel", (2, 3, 2), 2, (1, 2), stride=3),
            transposed("/1x1", (2, 3, 2), 3, 1, padding="VALID"),
            transposed("/1x1, stride", (2, 3, 2), 3, 1, stride=2, padding=0, output_padding=1),
            transposed("/pairs", (3, 4, 2), 2, 3, stride=2, padding=((2, 0), (1, 3))),
            transposed("/padding beyond the kernel", (5, 5, 1), 2, 2, stride=2, padding=3),
            transposed("/dilation", (3, 2, 2), 2, (3, 2), dilation=(2, 3), stride=(1, 2),
                       padding=1),
            transposed("/groups", (2, 3, 4), 6, (3, 2), groups=2, stride=(1, 2)),
            transposed("/depthwise", (2, 2, 3), 3, 3, groups=3, stride=2),
            transposed("/sequence", (4, 2), 3, 3, stride=2),
            transposed("/sequence, dilation, groups", (4, 4), 2, 2, dilation=3, groups=2, stride=2,
                       padding="VALID"),
            transposed("/volume", (2, 3, 2, 2), 2, (2, 3, 2), stride=(1, 2, 2))),
    ]  # fmt: skip


def windows_by_hand(
    n: int, k: int, s: int, padding: Any, ceil_mode: str | None, count_padding: bool
) -> tuple[tuple[int, int], list[int]]:
    """Along one axis: the padding that lax.reduce_window needs, and the count of each window."""
    if padding == "SAME":
        total = max((-(-n // s) - 1) * s + k - n, 0)
        padding = total // 2, total - total // 2
    low, high = padding
    counted = [count_padding] * low + [True] * n + [count_padding] * high
    if ceil_mode is not None:
        out = -(-(low + n + high - k) // s) + 1
        if (ceil_mode == "torch" or low or high) and (out - 1) * s >= low + n:
            out -= 1
        high = (out - 1) * s + k - n - low
    counts = [sum(counted[start : start + k]) for start in range(0, low + n + high - k + 1, s)]
    return (low, high), counts


def pools() -> list[Case]:
    """The maxima are apart, for finite differences; ties are in test_pooling.py."""

    def apart(rng: np.random.Generator, shape: Shape) -> np.ndarray:
        """Entries that differ by a tenth: no step of a difference quotient changes the winner."""
        rank = rng.permutation(int(np.prod(shape))).reshape(shape)
        return np.where(rank % 2, -0.5, 0.5) * 1.1 ** (rank // 2)

    def row(id: str, make: Callable[..., Block], draw: Draw, shape: Shape, **options: Any) -> Case:
        each = lambda v: (v,) * (len(shape) - 1) if isinstance(v, int | str) else v  # noqa: E731
        window, stride = each(options["window"]), each(options.get("stride", options["window"]))
        padding = options.get("padding", "VALID")
        padding = 0 if padding == "VALID" else padding
        pairs = [(v, v) if isinstance(v, int) else v for v in each(padding)]
        mode, count = options.get("ceil_mode"), options.get("count_padding", True)
        axes = zip(shape, window, stride, pairs, strict=False)  # without the channels
        pads, counts = zip(*(windows_by_hand(*axis, mode, count) for axis in axes), strict=True)
        numbers = functools.reduce(np.multiply.outer, map(np.array, counts))[None, ..., None]

        def plain(params: Any, x: Any) -> Any:
            where = ((1, *window, 1), (1, *stride, 1), ((0, 0), *pads, (0, 0)))
            if make is fnn.max_pool:
                return lax.reduce_window(x, x.dtype.type(-np.inf), lax.max, *where)
            total = lax.reduce_window(x, x.dtype.type(0), lax.add, *where)
            with jax.numpy_rank_promotion("allow"):
                return total / numbers.astype(x.dtype)

        more: dict[str, Any] = {"batch": (2,), "batches": ((1,), (0,), (5,))}
        if make is fnn.max_pool:
            more["bytes_over"] = "x, which TPUs read, and the places, which others read"
        return Case(id, lambda: make(**options), (In(shape, draw),), plain=plain, **more)

    def max_(id: str, shape: Shape, **options: Any) -> Case:
        return row(f"max_pool{id}", fnn.max_pool, apart, shape, **options)

    def avg(id: str, shape: Shape, **options: Any) -> Case:
        return row(f"avg_pool{id}", fnn.avg_pool, normal, shape, **options)

    pairs = ((1, 0), (0, 2))
    return [
        max_("", (4, 4, 3), window=2),
        *further(
            max_("/overlapping", (7, 7, 2), window=3, stride=2),
            max_("/overlapping, ragged", (8, 6, 2), window=3, stride=2),
            max_("/same, stride 1", (5, 4, 2), window=3, stride=1, padding="SAME"),
            max_("/same, stride 2", (6, 6, 2), window=3, stride=2, padding="SAME"),
            max_("/padding", (7, 6, 2), window=3, stride=2, padding=1),
            max_("/more padding than stride", (6, 7, 1), window=5, stride=2, padding=3),
            max_("/pairs", (5, 6, 2), window=(2, 3), stride=(1, 2), padding=pairs),
            max_("/gaps", (8, 7, 2), window=2, stride=3),
            max_("/window is input", (4, 3, 2), window=(4, 3)),
            max_("/ceil", (6, 8, 2), window=3, stride=2, ceil_mode="caffe"),
            max_("/ceil, torch, padding", (5, 6, 2), window=2, stride=2, padding=1,
                 ceil_mode="torch"),
            max_("/sequence", (9, 2), window=3, stride=2),
            max_("/sequence, same", (5, 2), window=(4,), stride=(1,), padding="SAME"),
            max_("/volume", (3, 4, 5, 1), window=(2, 2, 3), stride=(1, 2, 2))),
        avg("", (4, 4, 3), window=2),
        *further(
            avg("/overlapping", (8, 7, 2), window=3, stride=2),
            avg("/same, stride 1", (5, 4, 2), window=3, stride=1, padding="SAME"),
            avg("/padding does not count", (4, 3, 2), window=3, stride=1, padding=1,
                count_padding=False),
            avg("/pairs", (5, 6, 2), window=(2, 3), stride=(1, 2), padding=pairs),
            avg("/gaps", (8, 7, 2), window=2, stride=3),
            avg("/window is input", (7, 7, 2), window=7, stride=1),
            avg("/ceil", (5, 5, 2), window=2, stride=2, ceil_mode="caffe"),
            avg("/ceil, padding", (6, 6, 2), window=3, stride=2, padding=1, ceil_mode="torch"),
            avg("/sequence", (9, 2), window=3, stride=2),
            avg("/volume", (3, 4, 5, 2), window=2, stride=(1, 2, 2), padding=1,
                count_padding=False)),
        Case("global_avg_pool", fnn.global_avg_pool, (In((3, 4, 2)),), batch=(2,),
             batches=((1,), (0,), (5,)), plain=lambda _, x: jnp.mean(x, (1, 2))),
        *further(
            Case("global_avg_pool/sequence", fnn.global_avg_pool, (In((5, 2)),), batch=(2,),
                 batches=((1,), (0,)), plain=lambda _, x: jnp.mean(x, 1)),
            Case("global_avg_pool/volume", fnn.global_avg_pool, (In((2, 3, 2, 2)),), batch=(2,),
                 batches=((1,), (0,)), plain=lambda _, x: jnp.mean(x, (1, 2, 3)))),
    ]  # fmt: skip


def normalizations() -> list[Case]:
    def response(
        id: str, channels: int, size: int = 5, alpha: float = 1e-4, beta: float = 0.75,
        k: float = 1.0, **more: Any
    ) -> Case:  # fmt: skip
        def plain(params: Any, x: Any) -> Any:
            one, rank = (1,) * (x.ndim - 1), x.ndim - 1
            pads = ((0, 0),) * rank + ((size // 2, (size - 1) // 2),)
            total = lax.reduce_window(
                x * x, x.dtype.type(0), lax.add, (*one, size), (*one, 1), pads
            )
            return x / (k + alpha / size * total) ** beta

        make = lambda: fnn.local_response_norm(size, alpha=alpha, beta=beta, k=k)  # noqa: E731
        options = {"batch": (2, 3), "batches": ANY} | more
        return Case(f"local_response_norm{id}", make, (In((channels,), away_from(scale=2)),),
                    plain=plain, **options)  # fmt: skip

    def layer(id: str, make: Callable[[], Block], axes: Shape = (-1,), **more: Any) -> Case:
        def plain(params: Any, x: Any) -> Any:
            mean = jnp.mean(x, axes, keepdims=True)
            variance = jnp.mean((x - mean) ** 2, axes, keepdims=True)
            z = (x - mean) / jnp.sqrt(variance + 1e-5)
            dims = [a % x.ndim for a in axes]
            spread = [n if a in dims else 1 for a, n in enumerate(x.shape)]
            scale, bias = (
                params[leaf].reshape(spread) if leaf in params else fixed
                for leaf, fixed in (("scale", 1.0), ("bias", 0.0))
            )
            return z * scale + bias

        options = {"inputs": (In((5,)),), "batch": (2,), "batches": ANY, "plain": plain}
        return Case(f"layer_norm{id}", make, **(options | more))

    def by_group(id: str, make: Callable[[], Block], groups: int, **more: Any) -> Case:
        def plain(params: Any, x: Any) -> Any:
            parts = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
            axes = (*range(1, x.ndim - 1), x.ndim)
            mean = jnp.mean(parts, axes, keepdims=True)
            z = (parts - mean) / jnp.sqrt(jnp.var(parts, axes, keepdims=True) + 1e-5)
            with jax.numpy_rank_promotion("allow"):
                return z.reshape(x.shape) * params.get("scale", 1) + params.get("bias", 0)

        options = {"batch": (2,), "batches": ((1,), (0,)), "plain": plain, "ulps": 8}
        return Case(id, make, **(options | more))

    def standardised(params: Any, x: Any, mean: Any, var: Any) -> Any:
        with jax.numpy_rank_promotion("allow"):
            return (x - mean) / jnp.sqrt(var + 1e-5) * params["scale"] + params["bias"]

    def by_batch(params: Any, x: Any) -> Any:
        axes = tuple(range(x.ndim - 1))
        return standardised(params, x, jnp.mean(x, axes), jnp.var(x, axes))

    def by_running(params: Any, x: Any) -> Any:
        statistics = params["statistics"]
        return standardised(params, x, statistics["mean"], statistics["var"])

    def rms(params: Any, x: Any) -> Any:
        y = x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
        return y * params["scale"].reshape((1,) * (x.ndim - 1) + (-1,)) if params else y

    rows = {"inputs": (In((5,)),), "batch": (2,), "batches": ANY, "plain": rms, "ulps": 8}
    images = {"inputs": (In((3, 2, 4)),), "batches": ((1,), (0,))}
    channels = {"inputs": (In((2, 3)),), "batch": (4,), "frozen": ("statistics/",)}
    return [
        response("", 7, alpha=1.0),
        *further(
            response("/caffe's and pytorch's alpha", 6),
            response("/images", 8, alpha=0.5, batch=(2, 3, 3)),
            response("/beta 0.5", 5, size=3, alpha=2.0, beta=0.5, k=2.0),
            response("/beta 1", 5, size=3, alpha=2.0, beta=1.0, k=2.0),
            response("/any beta", 5, size=3, alpha=2.0, beta=0.6, k=2.0),
            response("/even window", 6, size=4, alpha=1.0),
            response("/fewer channels than the window", 2, size=5, alpha=1.0)),
        layer("", fnn.layer_norm, ulps=8),
        *further(
            layer("/no scale", lambda: fnn.layer_norm(use_scale=False), ulps=8),
            layer("/no bias", lambda: fnn.layer_norm(use_bias=False), ulps=8),
            layer("/no parameters", lambda: fnn.layer_norm(use_scale=False, use_bias=False),
                  ulps=8),
            layer("/images", fnn.layer_norm, **images, ulps=8),
            layer("/axes", lambda: fnn.layer_norm((1, -1)), (1, -1), **images, ulps=8),
            layer("/axis 1", lambda: fnn.layer_norm(1), (1,), **images, ulps=8)),
        Case("rms_norm", fnn.rms_norm, **rows),
        *further(
            Case("rms_norm/no scale", lambda: fnn.rms_norm(epsilon=1e-6, use_scale=False), **rows)),
        by_group("group_norm", lambda: fnn.group_norm(2), 2, inputs=(In((3, 2, 4)),)),
        *further(
            by_group("group_norm/one group", lambda: fnn.group_norm(1), 1, inputs=(In((3, 2)),)),
            by_group("group_norm/no places", lambda: fnn.group_norm(2), 2, inputs=(In((6,)),)),
            by_group("group_norm/volume, no bias", lambda: fnn.group_norm(3, use_bias=False), 3,
                     inputs=(In((2, 2, 1, 6)),)),
            by_group("group_norm/no parameters",
                     lambda: fnn.group_norm(2, use_scale=False, use_bias=False), 2,
                     inputs=(In((3, 4)),))),
        by_group("instance_norm", fnn.instance_norm, 3, inputs=(In((3, 2, 3)),)),
        *further(
            by_group("instance_norm/sequence, no scale",
                     lambda: fnn.instance_norm(use_scale=False), 2, inputs=(In((4, 2)),)),
            by_group("instance_norm/volume", fnn.instance_norm, 2, inputs=(In((2, 1, 3, 2)),))),
        Case("batch_norm", fnn.batch_norm, (In((3,)),), batch=(5,), batches=((2,), (2, 2)),
             separable=None, frozen=("statistics/",), plain=by_batch, ulps=8),
        *further(
            Case("batch_norm/images", fnn.batch_norm, **channels, separable=None, plain=by_batch,
                 ulps=8),
            Case("batch_norm/inference", lambda: fnn.inference(fnn.batch_norm()), **channels,
                 batches=((1,), (0,)), plain=by_running)),
    ]  # fmt: skip


# A key that is infinite has weight 0, and 0 times infinity is NaN, as in plain JAX. Scores of
# thousands (inputs times 30) are rounded by 1e-4, and so is what they are the exponents of.
NOTED_OF_ATTENTION = ("edges", "float32")


def attentions() -> list[Case]:
    def attend(
        id: str, t: int = 3, s: int = 4, heads: int = 2, groups: int = 2, mask: Any = None,
        more: Callable[[], Block] | None = None, causal: bool = False, scale: float | None = None,
        **options: Any,
    ) -> Case:  # fmt: skip
        def plain(params: Any, x: Any) -> Any:
            q, k, v = x[:3]
            k, v = (jnp.repeat(a, heads // groups, -2) for a in (k, v))
            z = jnp.einsum("...thd,...shd->...hts", q, k) * (scale or q.shape[-1] ** -0.5)
            looks = jnp.tril(jnp.ones((t, s), bool)) if causal else jnp.ones((t, s), bool)
            with jax.numpy_rank_promotion("allow"):
                z = jnp.where(looks & x[3] if mask else looks, z, -jnp.inf)
            return jnp.einsum("...hts,...she->...the", jax.nn.softmax(z), v)

        inputs = In((t, heads, 2)), In((s, groups, 2)), In((s, groups, 3))
        inputs = (*inputs, *([mask] if mask else []))
        settings: dict[str, Any] = {
            "batch": (2,),
            "batches": ((), (1,), (0,), (2, 2)),
            "ulps": 8,
            "noted": NOTED_OF_ATTENTION,
        }
        make = lambda: fnn.dot_product_attention(causal=causal, scale=scale)  # noqa: E731
        return Case(f"dot_product_attention{id}", make, inputs, plain=plain, **(settings | options))

    def turn(id: str, places: bool = False, interleaved: bool = False) -> Case:
        def plain(params: Any, x: Any) -> Any:
            x, at = x if places else (x, jnp.arange(x.shape[-3]))
            half = x.shape[-1] // 2
            speed = 10_000.0 ** (-jnp.arange(half).astype(x.dtype) / half)
            angle = jnp.expand_dims(at.astype(x.dtype), (-1, -2)) * speed.reshape(
                (1,) * (at.ndim + 1) + speed.shape
            )
            angle = angle.reshape((1,) * (x.ndim - angle.ndim) + angle.shape)
            turns = lax.complex(jnp.cos(angle), jnp.sin(angle))
            if interleaved:
                z = x.reshape(*x.shape[:-1], half, 2)
                z = turns * lax.complex(z[..., 0], z[..., 1])
                return jnp.stack([z.real, z.imag], -1).reshape(x.shape)
            z = turns * lax.complex(x[..., :half], x[..., half:])
            return jnp.concatenate([z.real, z.imag], -1)

        inputs = In((3, 2, 4)), *([In((3,), labels(50))] if places else [])
        make = lambda: fnn.rotary(interleaved=interleaved)  # noqa: E731
        return Case(f"rotary{id}", make, inputs, batch=(2,), batches=((), (1,), (0,), (2, 2)),
                    plain=plain)  # fmt: skip

    looks = lambda rng, shape: mask_of_one_at_least(shape)  # noqa: E731
    return [
        attend(""),
        *further(
            attend("/causal", 4, 4, causal=True),
            attend("/causal, more keys", 3, 5, causal=True, scale=0.3),
            attend("/grouped heads", heads=4, groups=2),
            attend("/one key head", heads=3, groups=1, causal=True),
            attend("/mask", mask=In((2, 3, 4), looks), batches=((1,), (2, 2))),
            attend("/padding", mask=In((1, 1, 4), looks), batches=((1,), (2, 2)), causal=True)),
        turn(""),
        *further(turn("/places", places=True), turn("/interleaved", interleaved=True)),
        *projected_attentions(),
    ]  # fmt: skip


def projected_attentions() -> list[Case]:
    def attend(
        id: str, more: dict[str, Any] | None = None, mask: In | None = None, **options: Any
    ) -> Case:
        heads, groups = 2, options.get("key_heads", 2)

        def plain(params: Any, x: Any) -> Any:
            x, *others = x if isinstance(x, tuple) else (x,)
            context = others[0] if options.get("cross") else x

            def project(name: str, x: Any, n: int) -> Any:
                y = jnp.einsum("...i,io->...o", x, params[name]["w"])
                y = y + params[name].get("b", jnp.zeros(y.shape[-1])).reshape(
                    (1,) * (y.ndim - 1) + (-1,)
                )
                return y.reshape(*y.shape[:-1], n, y.shape[-1] // n)

            q = project("query", x, heads)
            k, v = (
                jnp.repeat(project(n, context, groups), heads // groups, -2)
                for n in ("key", "value")
            )
            z = jnp.einsum("...thd,...shd->...hts", q, k) / np.sqrt(q.shape[-1])
            looks = jnp.tril(jnp.ones(z.shape[-2:], bool)) if options.get("causal") else True
            with jax.numpy_rank_promotion("allow"):
                p = jax.nn.softmax(jnp.where(others[-1] & looks if mask else looks, z, -jnp.inf))
            y = jnp.einsum("...hts,...shd->...thd", p, v)
            return project("out", y.reshape(*y.shape[:-2], y.shape[-2] * y.shape[-1]), 1)[..., 0, :]

        options = options | ({"masked": True} if mask else {})
        inputs = (
            In((3, 4)),
            *([In((5, 3))] if options.get("cross") else []),
            *([mask] if mask else []),
        )
        settings: dict[str, Any] = {
            "batch": (2,),
            "batches": ((), (1,), (0,), (2, 2)),
            "ulps": 16,
            "noted": NOTED_OF_ATTENTION,
        }
        turned = "query_key" in options
        return Case(f"attention{id}", lambda: fnn.attention(4, heads, **options), inputs,
                    plain=None if turned else plain, **(settings | (more or {})))  # fmt: skip

    looks = lambda rng, shape: mask_of_one_at_least(shape)  # noqa: E731
    turned = lambda: fnn.serial(fnn.rms_norm(), fnn.rotary())  # noqa: E731
    ids = {"batch": (2,), "batches": ((), (0,), (2, 2))}

    def placed(params: Any, x: Any) -> Any:
        x, at = x if isinstance(x, tuple) else (x, jnp.arange(x.shape[-2]))
        return x + params["w"][at].reshape((1,) * (x.ndim - 1 - at.ndim) + (*at.shape, x.shape[-1]))

    def glu(params: Any, x: Any) -> Any:
        return jax.nn.silu(x @ params["gate"]["w"]) * (x @ params["value"]["w"])

    heads = {"batch": (2,), "batches": ANY}
    rows = {"inputs": (In((4,)),), "batch": (2,), "batches": ((0,), (1, 2))}
    return [
        attend("", {"batches": ((0,),)}),
        *further(
            attend("/causal, grouped heads", causal=True, key_heads=1, use_bias=False),
            attend("/cross, mask", {"batches": ()}, In((1, 3, 5), looks), cross=True),
            attend("/turned", {"batches": ()}, query_key=turned())),
        Case("split_heads", lambda: fnn.split_heads(2), (In((4,)),), **heads,
             plain=lambda _, x: x.reshape(*x.shape[:-1], 2, 2)),
        Case("merge_heads", fnn.merge_heads, (In((2, 3)),), **heads,
             plain=lambda _, x: x.reshape(*x.shape[:-2], 6)),
        Case("position_embedding", lambda: fnn.position_embedding(4), (In((3, 2)),), plain=placed,
             **ids),
        *further(
            Case("position_embedding/places", lambda: fnn.position_embedding(4),
                 (In((3, 2)), In((3,), labels(4))), plain=placed, **ids)),
        Case("gated", lambda: fnn.gated(3, fnn.silu()), plain=glu, **rows),
        Case("unembedding", lambda: fnn.unembedding(5), plain=lambda p, x: x @ p["w"].T, **rows),
        *further(
            Case("unembedding/factored", lambda: fnn.unembedding(5, factored=True), **rows,
                 separable=None)),
    ]  # fmt: skip


def recurrences() -> list[Case]:
    sigmoid = jax.nn.sigmoid

    def rnn(params: Any, x: Any, state: Any) -> Any:
        h = jnp.tanh(into(params, x) + state @ params["hidden"]["w"])
        return h, h

    def gru(params: Any, x: Any, h: Any) -> Any:
        (zr, zu, zn), hidden = jnp.split(into(params, x), 3, -1), params["hidden"]
        ur, uu, un = jnp.split(h @ hidden["w"], 3, -1)
        r, u = sigmoid(zr + ur), sigmoid(zu + uu)
        n = jnp.tanh(zn + r * (un + wide(hidden["b"], un)))
        h = (1 - u) * n + u * h
        return h, h

    def lstm(params: Any, x: Any, state: Any) -> Any:
        h, c = state
        i, f, g, o = jnp.split(into(params, x) + h @ params["hidden"]["w"], 4, -1)
        c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
        h = sigmoid(o) * jnp.tanh(c)
        return h, (h, c)

    def into(params: Any, x: Any) -> Any:
        z = x @ params["input"]["w"]
        return z + wide(params["input"]["b"], z)

    def wide(b: Any, like: Any) -> Any:
        return b.reshape((1,) * (like.ndim - 1) + b.shape)

    def over(step: Any, reverse: bool = False) -> Any:
        def run(params: Any, x: Any) -> Any:
            x, state = x if isinstance(x, tuple) else (x, None)
            zeros = jnp.zeros((*x.shape[:-2], 3), x.dtype)
            start = state if state is not None else (zeros, zeros) if step is lstm else zeros

            def body(state: Any, x: Any) -> Any:
                y, state = step(params, x, state)
                return state, y

            last, ys = lax.scan(body, start, jnp.moveaxis(x, -2, 0), reverse=reverse)
            y = jnp.moveaxis(ys, 0, -2)
            return y if state is None else (y, last)

        return run

    def with_pair() -> Block:
        """The cell of x, h and c as three inputs and outputs."""
        nodes = [
            ("state", fnn.serial(), ("h", "c")), ("cell", fnn.lstm_cell(3), ("x", "state")),
            ("y", fnn.item(0), "cell"), ("pair", fnn.item(1), "cell"),
            ("h2", fnn.item(0), "pair"), ("c2", fnn.item(1), "pair"),
        ]  # fmt: skip
        return fnn.graph(("x", "h", "c"), nodes, ("y", "h2", "c2"))

    def of_three(params: Any, x: Any) -> Any:
        y, (h, c) = lstm(params["cell"], x[0], x[1:])
        return y, h, c

    def composed() -> Block:
        """A cell of gates: parts of it read x alone, and its steps cannot be taken for a batch."""
        nodes = [
            ("input", fnn.linear(3), "x"), ("hidden", fnn.linear(3, use_bias=False), "h"),
            ("sum", fnn.add(), ("input", "hidden")), ("new", fnn.tanh(), "sum"),
        ]  # fmt: skip
        return fnn.graph(("x", "h"), nodes, ("new", "new"))

    step = {"batch": (2,), "batches": ((), (0,)), "ulps": 16}
    steps = {"inputs": (In((5, 4)),), "batch": (2,), "ulps": 32}
    state = In((5, 4)), In((3,))
    plain = lambda f: lambda params, x: f(params, *x)  # noqa: E731
    return [
        Case("rnn_cell", lambda: fnn.rnn_cell(3), (In((4,)), In((3,))), plain=plain(rnn), **step),
        Case("gru_cell", lambda: fnn.gru_cell(3), (In((4,)), In((3,))), plain=plain(gru), **step),
        Case("lstm_cell", with_pair, (In((4,)), In((3,)), In((3,))), plain=of_three, **step),
        Case("recurrent", lambda: fnn.recurrent(fnn.lstm_cell(3)), plain=over(lstm), **steps,
             batches=((0,), (1, 2))),
        *further(
            Case("recurrent/gru, state", lambda: fnn.recurrent(fnn.gru_cell(3)), plain=over(gru),
                 **steps | {"inputs": state}),
            Case("recurrent/reverse, rematerialize",
                 lambda: fnn.recurrent(fnn.rnn_cell(3), reverse=True, rematerialize=2),
                 plain=over(rnn, reverse=True), **steps),
            Case("recurrent/composed", lambda: fnn.recurrent(composed()), plain=over(rnn),
                 **steps | {"inputs": state})),
    ]  # fmt: skip


def mask_of_one_at_least(shape: Shape) -> np.ndarray:
    """True and False, and the first key always True."""
    some = mask(np.random.default_rng(0), shape)
    some[..., 0] = True
    return some


def embeddings() -> list[Case]:
    def plain(params: Any, ids: Any) -> Any:
        return params["w"][ids]

    ids = {"batch": (2, 3), "batches": ANY, "plain": plain}
    return [
        Case("embedding", lambda: fnn.embedding(4, 3), (In((), labels(4)),), **ids),
        *further(
            Case(
                "embedding/not all ids", lambda: fnn.embedding(50, 2), (In((), labels(9)),), **ids
            ),
            Case("embedding/sequences", lambda: fnn.embedding(4, 3), (In((5,), labels(4)),), **ids),
        ),
    ]


def losses() -> list[Case]:
    """A row for each kind of prediction, target and weights."""
    logits, p = In((4,), away_from(scale=2)), In((4,), probability_rows)
    weights, some = In((), positive), In((), mask)
    hot = lambda t, z: jax.nn.one_hot(t, z.shape[-1], dtype=z.dtype)  # noqa: E731

    def loss(id: str, make: Callable[[], Block], *inputs: In, f: Any, **more: Any) -> Case:
        """``f(prediction, target)``: the losses of the examples, as one would write them."""

        def plain(params: Any, x: Any) -> Any:
            values = f(x[0], x[1])
            if len(x) == 2:
                return jnp.sum(values) / max(values.size, 1)
            w = x[2].astype(values.dtype)
            return jnp.sum(w * values) / jnp.sum(w)

        # A weight's gradient is the loss of its example less the mean loss: of two examples with
        # nearly equal losses little would be left but rounding, by any formula. So five.
        some = {"batch": (2,), "separable": "mean"}
        if len(inputs) == 3:
            some = {"batch": (5,), "separable": None}
        options = {"batches": ROWS, "plain": plain, **some}
        return Case(id, make, inputs, **(options | more))

    def half_square(y: Any, t: Any) -> Any:
        return jnp.sum((y - t) ** 2, -1) / 2

    def entropy(z: Any, t: Any) -> Any:
        rows = t if is_floating(t) else hot(t, z)
        return -jnp.sum(rows * jax.nn.log_softmax(z), -1)

    def plain_entropy(q: Any, t: Any) -> Any:
        return -jnp.sum((t if is_floating(t) else hot(t, q)) * jnp.log(q), -1)

    def binary(z: Any, t: Any) -> Any:
        t = t.astype(z.dtype)
        return t * jax.nn.softplus(-z) + (1 - t) * jax.nn.softplus(z)

    def binary_p(q: Any, t: Any) -> Any:
        t = t.astype(q.dtype)
        return -t * jnp.log(q) - (1 - t) * jnp.log1p(-q)

    def fused(
        id: str, *more: In, words: Draw | None = None, of_logits: bool = False, **options: Any
    ) -> Case:
        """The pair (h, w) as two inputs."""
        ignored, s = options.get("ignore_label"), options.get("label_smoothing", 0.0)

        def make() -> Block:
            E, data = (
                fnn.linear_softmax_cross_entropy(**options),
                ("labels", *("weights",) * len(more)),
            )
            if of_logits:
                return E
            nodes = [("pair", fnn.serial(), ("h", "w")), ("loss", E, ("pair", *data))]
            return fnn.graph(("h", "w", *data), nodes, "loss")

        def plain(params: Any, x: Any) -> Any:
            z, (t, *w) = (x[0], x[1:]) if of_logits else (x[0] @ x[1].T, x[2:])
            logs = jax.nn.log_softmax(z)
            target = (1 - s) * hot(t, z) + s / z.shape[-1]
            values = -jnp.sum(target * logs, -1)
            values = values + options.get("z_loss", 0.0) * jax.nn.logsumexp(z, -1) ** 2
            w = w[0].astype(z.dtype) if w else jnp.ones_like(values)
            w = w if ignored is None else jnp.where(t == ignored, 0, w)
            total = jnp.sum(w)
            return jnp.sum(jnp.where(w == 0, 0, w * values)) / jnp.where(total == 0, 1, total)

        first = (In((5,), away_from(scale=2)),) if of_logits else (In((3,)), fixed(5, 3))
        inputs = (*first, In((), words or labels(5)), *more)
        batch = {"batch": (5,) if more else (2,), "batches": ((0,), (2, 2))} | (
            {"batches": ()} if more else {}
        )
        return Case(f"linear_softmax_cross_entropy{id}", make, inputs, plain=plain, separable=None,
                    ulps=16, noted=("edges",), **batch)  # fmt: skip

    from_minus_one = lambda rng, shape: labels(6)(rng, shape) - 1  # noqa: E731
    squared, softmax, bce = fnn.squared_error, fnn.softmax_cross_entropy, fnn.binary_cross_entropy
    of_p = lambda: fnn.binary_cross_entropy(from_logits=False)  # noqa: E731
    three, one = In((3,)), In()
    zero_one, between_them = In((), labels(2)), In((), unit)
    return [
        loss("squared_error", squared, three, three, f=half_square),
        *further(
            loss("squared_error/numbers", squared, one, one, f=lambda y, t: (y - t) ** 2 / 2,
                 batches=((1,), (0,), (5,))),
            loss("squared_error/weights", squared, three, three, weights, f=half_square,
                 batches=((3,), (2, 1, 2))),
            loss("squared_error/mask", squared, three, three, some, f=half_square, batches=()),
            loss("squared_error/integer target", squared, one, In((), labels(5)),
                 f=lambda y, t: (y - t.astype(y.dtype)) ** 2 / 2, batches=((1,), (0,)))),
        loss("binary_cross_entropy", bce, one, zero_one, f=binary, batches=((1,), (0,))),
        *further(
            loss("binary_cross_entropy/mask target", bce, one, In((), mask), f=binary, batches=()),
            loss("binary_cross_entropy/probabilities", bce, one, between_them, f=binary,
                 batches=((1,), (0,))),
            loss("binary_cross_entropy/several outputs", bce, three, In((3,), labels(2)),
                 f=lambda z, t: jnp.sum(binary(z, t), -1)),
            loss("binary_cross_entropy/weights", bce, one, zero_one, weights, f=binary, batches=()),
            loss("binary_cross_entropy/mask", bce, three, In((3,), unit), some,
                 f=lambda z, t: jnp.sum(binary(z, t), -1), batches=()),
            loss("binary_cross_entropy/of probabilities", of_p, between_them, zero_one, f=binary_p,
                 batches=((1,), (0,))),
            loss("binary_cross_entropy/of and to probabilities, weights", of_p, between_them,
                 between_them, weights, f=binary_p, batches=())),
        loss("softmax_cross_entropy", softmax, logits, In((), labels(4)), f=entropy),
        *further(
            loss("softmax_cross_entropy/probabilities", softmax, logits, p, f=entropy),
            loss("softmax_cross_entropy/weights", softmax, logits, In((), labels(4)), weights,
                 f=entropy, batches=((3,), (2, 1, 2))),
            loss("softmax_cross_entropy/mask", softmax, logits, In((), labels(4)), some,
                 f=entropy, batches=()),
            loss("softmax_cross_entropy/probabilities, weights", softmax, logits, p, weights,
                 f=entropy, batches=())),
        fused(""),
        *further(
            fused("/smoothed, z-loss, ignored", words=from_minus_one, ignore_label=-1,
                  label_smoothing=0.1, z_loss=0.01),
            fused("/weights, smoothed", weights, label_smoothing=0.2),
            fused("/mask", some),
            fused("/logits", of_logits=True, z_loss=0.01),
            fused("/logits, weights, ignored", weights, words=from_minus_one, of_logits=True,
                  ignore_label=-1, label_smoothing=0.1)),
        loss("cross_entropy", fnn.cross_entropy, p, In((), labels(4)), f=plain_entropy),
        *further(
            loss("cross_entropy/probabilities, weights", fnn.cross_entropy, p, p, weights,
                 f=plain_entropy, batches=())),
    ]  # fmt: skip


def combinators() -> list[Case]:
    features = {"inputs": (In((3,)),), "batch": (2,)}
    empty = {**features, "batches": ((), (1,), (0,), (2, 1, 2))}
    hidden = lambda: fnn.layer(3, fnn.tanh())  # noqa: E731

    def fork_and_join() -> Block:
        return fnn.graph(
            "x",
            [("a", fnn.linear(3), "x"), ("b", fnn.tanh(), "a"), ("c", fnn.square(), "a"),
             ("d", fnn.multiply(), ("b", "c")), ("e", fnn.add(), ("d", "x", "a"))],
            "e",
        )  # fmt: skip

    def tied() -> Block:
        return fnn.graph("x", [("first", hidden(), "x"), ("again", hidden(), "first", "first"),
                               ("last", fnn.linear(3), "again")], "last")  # fmt: skip

    def siamese() -> Block:
        return fnn.graph(("u", "v"), [("f", hidden(), "u"), ("g", hidden(), "v", "f"),
                                      ("gap", fnn.subtract(), ("f", "g"))], "gap")  # fmt: skip

    def nested() -> Block:
        inner = fnn.graph("x", [("l", fnn.linear(3), "x"), ("y", fnn.add(), ("l", "x"))], "y")
        return fnn.graph("x", [("one", inner, "x"), ("two", inner, "one"),
                               ("out", fnn.multiply(), ("one", "two"))], "out")  # fmt: skip

    def tuple_node() -> Block:
        both = fnn.fan_out(f=fnn.linear(2), g=fnn.exp())
        return fnn.graph("x", [("both", both, "x"), ("y", fnn.concatenate(), "both")], "y")

    def several_outputs() -> Block:
        return fnn.graph(("u", "v"), [("s", fnn.multiply(), ("u", "v"))], ("s", "u", "s"))

    def noisy() -> Block:
        return fnn.serial(fnn.linear(3), fnn.dropout(0.4), fnn.tanh(), fnn.dropout(0.2))

    def half_frozen() -> Block:
        return fnn.serial(body=fnn.freeze(fnn.serial(hidden(), hidden())), head=fnn.linear(2))

    def doubled() -> Block:
        twice = lambda name, block: fnn.serial(block, fnn.negate())  # noqa: E731
        return fnn.map_nodes(fnn.serial(a=fnn.linear(3), b=fnn.square()), twice)

    pair = {"inputs": (In((3,)), In((3,))), "batch": (2,)}
    frozen_x = "freeze(block) keeps what block keeps, also for a gradient that is not computed"
    return [
        Case("serial", lambda: fnn.serial(fnn.linear(4), fnn.tanh(), fnn.linear(2)), **empty),
        *further(
            Case("serial/named", lambda: fnn.serial(a=fnn.linear(4), b=fnn.gelu()), **features),
            Case("serial/no blocks", fnn.serial, **features),
            Case("serial/dropout", noisy, needs_key=True, **(features | {"separable": None}))),
        Case("graph/fork and join", fork_and_join, **empty, ulps=16),
        *further(
            Case("graph/tied", tied, **features, ulps=8),
            Case("graph/siamese", siamese, **pair, ulps=16),
            Case("graph/nested", nested, **features, ulps=16),
            Case("graph/tuple-valued node", tuple_node, **features),
            Case("graph/several outputs", several_outputs, **pair)),
        Case("map_nodes", doubled, **features),
        Case("fan_out", lambda: fnn.fan_out(fnn.square(), fnn.linear(2)), **features),
        Case("item", lambda: fnn.fan_out(a=fnn.item(0), b=fnn.item(-1)), **pair),
        Case("residual", lambda: fnn.residual(hidden()), **features),
        *further(
            Case("residual/shortcut", lambda: fnn.residual(fnn.layer(2, fnn.tanh()), fnn.linear(2)),
                 **features)),
        Case("repeat", lambda: fnn.repeat(hidden(), 3), **empty, ulps=8),
        *further(
            Case("repeat/no parameters", lambda: fnn.repeat(fnn.tanh(), 2), **features),
            Case("repeat/dropout", lambda: fnn.repeat(noisy(), 2), needs_key=True,
                 **(features | {"separable": None}), ulps=8),
            Case("repeat/once", lambda: fnn.repeat(hidden(), 1), **features)),
        Case("rematerialize", lambda: fnn.rematerialize(fnn.serial(hidden(), fnn.square())),
             **empty, ulps=8),
        *further(
            Case("rematerialize/products", lambda: fnn.rematerialize(
                fnn.serial(fnn.square(), hidden(), fnn.square(), d=fnn.linear(2)), keep="products"),
                 **features, ulps=8),
            Case("rematerialize/dropout", lambda: fnn.rematerialize(noisy()), needs_key=True,
                 **(features | {"separable": None})),
            Case("rematerialize/repeat", lambda: fnn.rematerialize(fnn.repeat(hidden(), 2)),
                 **features, ulps=8)),
        Case("freeze", lambda: fnn.freeze(fnn.linear(2)), **features, frozen=("",),
             unused=frozen_x),
        *further(
            Case("freeze/body", half_frozen, **features, frozen=("body/",), unused=frozen_x,
                 ulps=8),
            Case("freeze/repeat", lambda: fnn.freeze(fnn.repeat(hidden(), 2)), **features,
                 frozen=("",), unused=frozen_x, ulps=8)),
        Case("inference", lambda: fnn.inference(noisy()), **features),
    ]  # fmt: skip


def networks() -> list[Case]:
    features = {"inputs": (In((4,)),), "batch": (2,)}
    mlp = functools.partial(fnn.models.mlp, (4, 3))
    mean = {"batch": (2,), "separable": "mean"}
    logistic = fnn.models.logistic_regression
    images = {"inputs": (In((6, 5, 2)),), "batch": (2,), "step": 1e-5}
    ids = {"inputs": (In((3,), labels(5)),), "batch": (2,), "step": 1e-3, "ulps": 64}

    def batch_normed() -> Block:
        return fnn.serial(fnn.linear(3, use_bias=False), fnn.batch_norm(), fnn.tanh())

    def two_heads() -> Block:
        net = fnn.fan_out(a=fnn.linear(3), b=fnn.linear(3))
        return fnn.with_loss(net, fnn.models.deep_supervision(fnn.squared_error(), (1.0, 0.3)))

    return [
        Case("cnn/small", lambda: fnn.models.cnn(3, channels=(2, 3), hidden=4), **images, ulps=16),
        Case("inception/small", lambda: fnn.models.inception(1, 2, 1, 1, 2, 1), **images, ulps=8),
        *further(
            Case("serial/batch_norm", batch_normed, (In((4,)),), batch=(5,), separable=None,
                 ulps=16,
                 frozen=("1_batch_norm/statistics/",))),
        Case("deep_supervision", two_heads, (In((4,)), In((3,))), **mean, ulps=8),
        Case("transformer", lambda: fnn.models.transformer(5, 4, 1, 2, length=3), **ids),
        *further(
            Case("transformer/llama, scanned", lambda: fnn.models.transformer(
                5, 4, 2, 2, style="llama", key_heads=1, tied=False, scanned=True), **ids)),
        Case("microgpt", lambda: fnn.models.microgpt(5, length=3), **ids),
        Case("logistic_regression", logistic, **features, batches=((1,), (0,))),
        *further(
            Case("logistic_regression/3 classes", lambda: logistic(3), **features)),
        Case("mlp", lambda: mlp(fnn.tanh()), **features, batches=((1,), (0,)), ulps=8),
        *further(
            Case("mlp/relu, no bias", lambda: mlp(use_bias=False), **features, ulps=8),
            Case("mlp/dropout", lambda: mlp(fnn.gelu(), dropout=0.3), needs_key=True, ulps=8,
                 **(features | {"separable": None}))),
        Case("with_loss", lambda: fnn.with_loss(mlp(fnn.tanh()), fnn.softmax_cross_entropy()),
             (In((4,)), In((), labels(3))), **mean, batches=((1,), (0,)), ulps=8),
        *further(
            Case("with_loss/neuron", lambda: fnn.with_loss(logistic(), fnn.binary_cross_entropy()),
                 (In((4,)), In((), labels(2))), **mean),
            Case("with_loss/weights",
                 lambda: fnn.with_loss(fnn.linear(2), fnn.squared_error(), weighted=True),
                 (In((4,)), In((2,)), In((), positive)), batch=(2,), separable=None, ulps=8),
            Case("with_loss/graph", lambda: fnn.with_loss(
                fnn.residual(fnn.layer(4, fnn.silu())), fnn.squared_error()),
                (In((4,)), In((4,))), **mean, ulps=8)),
    ]  # fmt: skip


CASES: list[Case] = [
    *nonlinearities(), *gates(), *layers(), *convolutions(), *pools(), *normalizations(),
    *attentions(), *recurrences(), *embeddings(), *losses(), *combinators(), *networks(),
]  # fmt: skip


# ---- numbers for a row -----------------------------------------------------------------------


class Sample(NamedTuple):
    """Arguments of forward and backward, in float64."""

    params: Any
    x: Any
    key: Any
    dy: Any


def _parameter(rng: np.random.Generator, path: Any, like: Any) -> jax.Array:
    drawn = 0.7 * rng.standard_normal(like.shape)
    variance = jax.tree_util.keystr(path[-1:], simple=True) == "var"
    return jax.device_put(np.abs(drawn) + 0.1 if variance else drawn)


def sample(case: Case, batch: Shape | None = None, seed: int = 0) -> Sample:
    """The row's parameters, inputs and an upstream cotangent, all random and always the same.

    The parameters do not depend on the batch or the seed.
    """
    block = case.make()
    batch = case.batch if batch is None else batch
    fixed_rng = np.random.default_rng(zlib.crc32(case.id.encode()))
    rng = np.random.default_rng([zlib.crc32(case.id.encode()), seed, *batch])

    # device_put: jnp.asarray compiles a program for each shape.
    def array(spec: In) -> jax.Array:
        return jax.device_put(spec.draw(rng, (*batch, *spec.shape) if spec.batched else spec.shape))

    x = tuple(map(array, case.inputs))
    x = x if len(x) > 1 else x[0]
    key = jax.random.key(seed) if case.needs_key else None
    # Not as init makes them: a bias of 0 would hide errors.
    start = jax.eval_shape(block.init, jax.random.key(0), x)
    params = jax.tree_util.tree_map_with_path(lambda *leaf: _parameter(fixed_rng, *leaf), start)
    y = jax.eval_shape(block.forward, params, x, key)[0]
    dy = jax.tree.map(lambda v: jax.device_put(np.asarray(rng.standard_normal(v.shape))), y)
    return Sample(params, x, key, dy)


def is_checked(case: Case) -> bool:
    """Whether fnn.check can prove the row right: not a surrogate, and with numbers to check."""
    return not case.surrogate and case.id not in ("sum/empty axis", "mean/empty axis")
