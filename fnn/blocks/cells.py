"""Cells: one step of a recurrent network, from input and state to output and next state.

Symbols: B... batch axes, I features in, F features of the state; s is the logistic function.

    rnn    h' = tanh(a)                        a = x W + b + h U
    lstm   i, f, o = s(a_i), s(a_f), s(a_o)    g = tanh(a_g), the same a in four parts
           c' = f c + i g                      h' = o tanh(c')
    gru    r, u = s(a_r), s(a_u)               n = tanh(z_n + r (h U_n + b_n))
           h' = (1 - u) n + u h                a = z + h U, z = x W + b

A cell is a graph of two nodes: ``input``, the :func:`~fnn.linear` layer z = x W + b, and
``hidden``, all the rest, so that a network over time can run the first for all steps at once. What
is kept of a step are its a, from which each slope is computed without cancellation,
s'(a) = e / (1 + e)^2 with e = exp(-|a|) and tanh'(a) = 4 s'(2a), and the state before it.

Going back is in two halves. The slopes, what each cotangent is multiplied by, depend on what was
kept alone: a network over time computes those of many steps at once. What is left for each step are
products with the cotangents, and du U^T.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jax.typing import DTypeLike

from fnn.arguments import Count, checked
from fnn.arrays import Shape, compute_dtype
from fnn.block import Block, BlockTypeError, BlockValueError, Key, Kind, Params, Residuals, Value
from fnn.blocks.linear import Initializer, contract, glorot, initial, linear, zeros
from fnn.executor import graph
from fnn.refusals import (
    as_cotangent,
    as_held,
    described,
    elementary,
    require_floating,
    require_shapes,
)

orthogonal = jax.nn.initializers.orthogonal()

Arrays = tuple[jax.Array, ...]


class Rule(NamedTuple):
    """What is different from cell to cell, with u = h U + b and the state as a tuple, h first."""

    step: Callable[[jax.Array, jax.Array, Arrays], tuple[Arrays, Arrays]]
    """(z, u, state) to the next state, and what is kept."""
    slopes: Callable[[Arrays, Arrays], Arrays]
    """(what was kept, state) to what the cotangents are multiplied by."""
    back: Callable[[Arrays, Arrays], tuple[jax.Array, jax.Array, tuple[Any, ...]]]
    """(slopes, cotangents of the next state) to dz, du, and what the state gets besides du U^T."""


@checked
def rnn_cell(
    features: Count,
    *,
    w_init: Initializer = glorot,
    u_init: Initializer = orthogonal,
    b_init: Initializer = zeros,
) -> Block:
    """The simple cell: h' = tanh(x W + b + h U), y = h' (Elman 1990).

    Args:
      features: F, of the state.
      w_init, u_init, b_init: from ``jax.nn.initializers``.

    Returns:
      A graph of (x, h), of shapes (B..., I) and (B..., F), to (y, h'); None in place of h is a
      state of zeros. Parameters ``input/w`` (I, F), ``input/b`` and ``hidden/w``, which is U (F,
      F). Residuals: x, h, and what tanh is of.

    Raises:
      BlockValueError: x and the state are of another batch, or the state of another size.
      BlockTypeError: x is not floating.

    >>> import fnn, jax, jax.numpy as jnp
    >>> net = fnn.rnn_cell(1)
    >>> params = {"input": {"w": jnp.array([[1.0]]), "b": jnp.zeros(1)},
    ...           "hidden": {"w": jnp.array([[0.5]])}}
    >>> (y, h), residuals = net.forward(params, (jnp.array([1.0]), jnp.array([2.0])))
    >>> y  # tanh(1 + 2/2)
    Array([0.9640276], dtype=float32)
    """
    hidden = _hidden("rnn_step", features, 1, 1, u_init)
    return _cell("rnn_cell", features, 1, hidden, w_init, b_init)


def _rnn_step(z: jax.Array, u: jax.Array, state: Arrays) -> tuple[Arrays, Arrays]:
    return (jnp.tanh(z + u),), (z + u,)


def _rnn_slopes(kept: Arrays, state: Arrays) -> Arrays:
    return (_tanh_slope(kept[0]),)


def _rnn_back(slopes: Arrays, d: Arrays) -> tuple[jax.Array, jax.Array, Any]:
    # forward: h' = tanh(a), a = z + u, so dz = du = tanh'(a) dh'.
    da = slopes[0] * d[0]
    return da, da, (None,)


@checked
def gru_cell(
    features: Count,
    *,
    w_init: Initializer = glorot,
    u_init: Initializer = orthogonal,
    b_init: Initializer = zeros,
) -> Block:
    """The gated recurrent unit: h' = (1 - u) n + u h, y = h' (Cho et al. 2014, arXiv 1406.1078).

    r = s(x W_r + b_r + h U_r), u = s(x W_u + b_u + h U_u), n = tanh(x W_n + b_n + r (h U_n + c)):
    the form that PyTorch and cuDNN have.

    Args:
      features: F, of the state.
      w_init, u_init, b_init: from ``jax.nn.initializers``.

    Returns:
      A graph of (x, h), of shapes (B..., I) and (B..., F), to (y, h'); None in place of h is a
      state of zeros. Parameters ``input/w`` (I, 3F) and ``input/b``, in the order r, u, n (as in
      PyTorch), ``hidden/w``, which is U (F, 3F), and ``hidden/b``, which is c (F,). Residuals: x,
      h, and what the three functions are of.

    Raises:
      BlockValueError, BlockTypeError: as :func:`rnn_cell`.

    >>> import fnn, jax, jax.numpy as jnp
    >>> net, x, h = fnn.gru_cell(2), jnp.zeros((5, 3)), jnp.ones((5, 2))
    >>> params = net.init(jax.random.key(0), (x, h))
    >>> jax.tree.map(jnp.shape, params)
    {'hidden': {'b': (2,), 'w': (2, 6)}, 'input': {'b': (6,), 'w': (3, 6)}}
    """
    hidden = _hidden("gru_step", features, 1, 3, u_init, bias=True)
    return _cell("gru_cell", features, 3, hidden, w_init, b_init)


def _gru_step(z: jax.Array, u: jax.Array, state: Arrays) -> tuple[Arrays, Arrays]:
    (h,), (zr, zu, zn), (ur, uu, un) = state, jnp.split(z, 3, -1), jnp.split(u, 3, -1)
    kept = zr + ur, zu + uu, zn, un
    reset, update = sigmoid(kept[0]), sigmoid(kept[1])
    new = jnp.tanh(zn + reset * un)
    return (new + update * (h - new),), kept


def _gru_slopes(kept: Arrays, state: Arrays) -> Arrays:
    # forward: h' = n + u (h - n), so du = dh' (h - n), dn = dh' (1 - u), and h gets dh' u;
    # n = tanh(a_n), a_n = z_n + r u_n, so dr = da_n u_n, and u_n gets da_n r.
    (ar, au, zn, un), (h,) = kept, state
    reset = sigmoid(ar)
    an = zn + reset * un
    of_r, of_u = _sigmoid_slope(ar) * un, _sigmoid_slope(au) * (h - jnp.tanh(an))
    return reset, sigmoid(au), _tanh_slope(an) * sigmoid(-au), of_r, of_u


def _gru_back(slopes: Arrays, d: Arrays) -> tuple[jax.Array, jax.Array, Any]:
    reset, update, new, of_r, of_u = slopes
    (dh,) = d
    dan = new * dh
    dar, dau = of_r * dan, of_u * dh
    dz, du = ((dar, dau, last) for last in (dan, dan * reset))
    return jnp.concatenate(dz, -1), jnp.concatenate(du, -1), (dh * update,)


@checked
def lstm_cell(
    features: Count,
    *,
    forget_bias: float = 1.0,
    w_init: Initializer = glorot,
    u_init: Initializer = orthogonal,
    b_init: Initializer = zeros,
) -> Block:
    """Long short-term memory: c' = f c + i g, h' = o tanh(c'), y = h'.

    i, f, o = s(x W + b + h U) and g = tanh(x W + b + h U), each with its own part of W, b and U
    (Hochreiter and Schmidhuber 1997; the forget gate of Gers et al. 2000).

    Args:
      features: F, of h and of c.
      forget_bias: what b of the forget gate starts at, beside ``b_init``: 1, so that at first most
        of c is kept (Jozefowicz et al. 2015).
      w_init, u_init, b_init: from ``jax.nn.initializers``.

    Returns:
      A graph of (x, (h, c)), of shapes (B..., I) and twice (B..., F), to (y, (h', c')); None in
      place of the state is one of zeros. Parameters ``input/w`` (I, 4F) and ``input/b``, in the
      order i, f, g, o (as in PyTorch), and ``hidden/w``, which is U (F, 4F). Residuals: x, h, c,
      and what the four functions are of.

    Raises:
      BlockValueError, BlockTypeError: as :func:`rnn_cell`.

    >>> import fnn, jax, jax.numpy as jnp
    >>> net, x = fnn.lstm_cell(2), jnp.zeros((5, 3))
    >>> params = net.init(jax.random.key(0), (x, None))
    >>> params["input"]["b"]
    Array([0., 0., 1., 1., 0., 0., 0., 0.], dtype=float32)
    """

    def biases(key: jax.Array, shape: Any, dtype: Any) -> jax.Array:
        b = initial("lstm_cell", "b_init", b_init, key, shape, dtype)
        return b.at[features : 2 * features].add(forget_bias)

    hidden = _hidden("lstm_step", features, 2, 4, u_init)
    return _cell("lstm_cell", features, 4, hidden, w_init, biases)


def _lstm_step(z: jax.Array, u: jax.Array, state: Arrays) -> tuple[Arrays, Arrays]:
    # s of all columns at once, also of g's, which is not used: XLA on CPU vectorises one loop
    # over a, and does not where one loop reads three of its parts (a quarter of the time).
    a, (_, c) = z + u, state
    (i, f, _, o), g = jnp.split(sigmoid(a), 4, -1), jnp.split(a, 4, -1)[2]
    c = f * c + i * jnp.tanh(g)
    return (o * jnp.tanh(c), c), (a,)


def _lstm_slopes(kept: Arrays, state: Arrays) -> Arrays:
    # forward: h' = o tanh(c'), so do = dh' tanh(c'), and c' gets dh' o tanh'(c') besides dc';
    # c' = f c + i g, so di = dc' g, df = dc' c, dg = dc' i, and c gets dc' f.
    (_, c), (ai, af, ag, ao) = state, jnp.split(kept[0], 4, -1)
    i, f, g, o = sigmoid(ai), sigmoid(af), jnp.tanh(ag), sigmoid(ao)
    new = f * c + i * g
    of_i, of_f, of_g = _sigmoid_slope(ai) * g, _sigmoid_slope(af) * c, _tanh_slope(ag) * i
    return of_i, of_f, of_g, _sigmoid_slope(ao) * jnp.tanh(new), o * _tanh_slope(new), f


def _lstm_back(slopes: Arrays, d: Arrays) -> tuple[jax.Array, jax.Array, Any]:
    of_i, of_f, of_g, of_o, of_c, f = slopes
    dh, dc = d
    dc = dc + of_c * dh
    da = jnp.concatenate([of_i * dc, of_f * dc, of_g * dc, of_o * dh], -1)
    return da, da, (None, f * dc)


def _cell(
    name: str, features: int, parts: int, hidden: Block, w_init: Initializer, b_init: Initializer
) -> Block:
    layer = linear(parts * features, w_init=w_init, b_init=b_init)
    nodes = [("input", layer, "x"), ("hidden", hidden, ("input", "state"))]
    whole = graph(("x", "state"), nodes, "hidden", name=name)
    return whole._replace(kind=Kind(name, (features,)))


def _hidden(
    name: str, features: int, states: int, parts: int, u_init: Initializer, bias: bool = False
) -> Block:
    """The block of (z, state) to (y, state) around a rule: the product h U, and its gradients.

    ``name``: of the rule in RULES. ``states``: how many arrays the state is; alone it is no tuple.
    ``bias``: whether the last of the parts of h U has a b.
    """
    shapes = {"w": (features, parts * features), **({"b": (features,)} if bias else {})}

    def inputs(x: Value) -> tuple[jax.Array, Arrays | None]:
        if not isinstance(x, (tuple, list)) or len(x) != 2:
            raise BlockTypeError(name, f"x is {described(x)}, needs (x, state)")
        z, state = x
        require_floating(name, "x", z)
        if state is None:
            return z, None
        arrays = (state,) if states == 1 else state
        if not isinstance(arrays, (tuple, list)) or len(arrays) != states:
            raise BlockTypeError(
                name, f"the state is {described(state)}, needs (h, c), or None for zeros"
            )
        needed = (*z.shape[:-1], features)
        for array in arrays:
            require_floating(name, "the state", array)
            if tuple(array.shape) != needed:
                raise BlockValueError(
                    name, f"the state has shape {tuple(array.shape)}, needs {needed} for x of the "
                    f"batch {z.shape[:-1]}: give a state of this batch, or None for zeros",
                )  # fmt: skip
        return z, tuple(arrays)

    def init(key: jax.Array, x: Value) -> Params:
        dtype = compute_dtype(inputs(x)[0].dtype)
        params = {"w": initial(name, "u_init", u_init, key, shapes["w"], dtype)}
        return params | ({"b": jnp.zeros(features, dtype)} if bias else {})

    def widened(batch: tuple[int, ...], dtype: DTypeLike, state: Arrays | None) -> Arrays:
        """The state in the dtype that a step is computed in."""
        wide = compute_dtype(dtype)
        if state is None:
            return (jnp.zeros((*batch, features), wide),) * states
        return tuple(jnp.asarray(s).astype(wide) for s in state)

    def forward(params: Params, x: Value, key: Key = None) -> tuple[Value, Residuals]:
        z, state = inputs(x)
        require_shapes(name, params, shapes)
        wide, old = compute_dtype(z.dtype), widened(z.shape[:-1], z.dtype, state)
        h = old[0].astype(z.dtype)
        u = contract(h, params["w"].astype(z.dtype), ((z.ndim - 1,), (0,))).astype(wide)
        if bias:
            b = params["b"].astype(wide).reshape((1,) * (z.ndim - 1) + (features,))
            u = jnp.concatenate([u[..., :-features], u[..., -features:] + b], -1)
        new, kept = RULES[name].step(z.astype(wide), u, old)
        like = new if state is None else state
        states_out = tuple(n.astype(s.dtype) for n, s in zip(new, like, strict=True))
        y = new[0].astype(z.dtype)
        return (y, states_out[0] if states == 1 else states_out), (kept, state, Shape((), z.dtype))

    def backward(params: Params, residuals: Residuals, dy: Value) -> tuple[Params, Value]:
        # forward: u = h U + b, so h gets du U^T: (B, P) (P, F) = (B, F).
        require_shapes(name, params, shapes)
        kept, state, like = residuals
        narrow, wide = like.dtype, compute_dtype(like.dtype)
        arrays = kept.arrays if isinstance(kept, Slopes) else kept
        old = widened(arrays[0].shape[:-1], narrow, state)
        slopes = arrays if isinstance(kept, Slopes) else RULES[name].slopes(arrays, old)
        d_y, d_state = pair_of_cotangents(name, dy)
        if states > 1 and d_state is not None:
            d_state = pair_of_cotangents(name, d_state, "(h', c'), its state")
        d_states = (d_state,) if states == 1 or d_state is None else tuple(d_state)

        def cotangent(d: Any) -> jax.Array:
            shape = old[0].shape
            return (
                jnp.zeros(shape, wide) if d is None else as_cotangent(name, d, shape).astype(wide)
            )

        d_h, *others = map(cotangent, d_states + (None,) * (states - len(d_states)))
        dz, du, direct = RULES[name].back(slopes, (d_h + cotangent(d_y), *others))
        dz, du, h, w = dz.astype(narrow), du.astype(narrow), old[0].astype(narrow), params["w"]
        dparams = _weights_back(params, h, du)
        if state is None:
            return dparams, (dz, None)
        through = contract(du, w.astype(narrow), ((du.ndim - 1,), (1,))).astype(wide)
        first = through if direct[0] is None else through + direct[0]
        d_old = tuple(d.astype(s.dtype) for d, s in zip((first, *direct[1:]), state, strict=True))
        return dparams, (dz, d_old[0] if states == 1 else d_old)

    return elementary(forward, backward, name, Kind(name, (features,)), init=init)


def pair_of_cotangents(name: str, dy: Value, of: str = "(y, state)") -> tuple[Value, Value]:
    """dy, refused where it is no pair."""
    if not isinstance(dy, (tuple, list)) or len(dy) != 2:
        raise BlockTypeError(name, f"dy is {described(dy)}, needs a pair, the cotangents of {of}")
    return dy[0], dy[1]


class Slopes(NamedTuple):
    """In place of what a step kept: its local slopes, of one step or of many."""

    arrays: Arrays


def with_slopes(block: Block, residuals: Residuals) -> Residuals:
    """The residuals of a cell's ``hidden``, also of many steps at once, with its slopes."""
    kept, state, like = residuals
    old = tuple(a.astype(compute_dtype(like.dtype)) for a in jax.tree.leaves(state))
    return Slopes(RULES[block.kind.maker].slopes(kept, old)), state, like


def gradients_of(block: Block, params: Params, residuals: Residuals, dz: jax.Array) -> Params:
    """Those of the parameters of a cell's ``hidden``, from dz; also of many steps at once, which
    then are one product over all of them."""
    slopes, state, like = residuals
    if block.kind.maker == "gru_step":  # n = tanh(z_n + r u_n), so du_n = r dz_n
        *rest, last = jnp.split(dz, 3, -1)
        dz = jnp.concatenate([*rest, (last * slopes.arrays[0]).astype(dz.dtype)], -1)
    return _weights_back(as_held(params), jax.tree.leaves(state)[0].astype(like.dtype), dz)


def _weights_back(params: Params, h: jax.Array, du: jax.Array) -> Params:
    # forward: u = h U + b, so dU = h^T du, db = du, summed over the batch: (F, B) (B, P) = (F, P).
    batch, w = tuple(range(du.ndim - 1)), params["w"]
    dparams = {"w": contract(h, du, (batch, batch), like=w).astype(w.dtype)}
    if "b" in params:
        b = params["b"]
        last = du[..., du.shape[-1] - b.shape[0] :]
        dparams["b"] = jnp.sum(last.astype(compute_dtype(du.dtype)), batch).astype(b.dtype)
    return dparams


def _sigmoid_slope(a: jax.Array) -> jax.Array:
    e = jnp.exp(-jnp.abs(a))
    return e / jnp.square(1 + e)


def _tanh_slope(a: jax.Array) -> jax.Array:
    return 4 * _sigmoid_slope(2 * a)


RULES = {
    "rnn_step": Rule(_rnn_step, _rnn_slopes, _rnn_back),
    "gru_step": Rule(_gru_step, _gru_slopes, _gru_back),
    "lstm_step": Rule(_lstm_step, _lstm_slopes, _lstm_back),
}
