"""Every block and loss against PyTorch: value and all gradients of random configurations, in
float64. Where PyTorch itself loses digits, the referee is a formula or mpmath, and the row says so.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import mpmath as mp
import numpy as np
import pytest

import fnn

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make test-outside")
F = torch.nn.functional
Rng = np.random.Generator


class Drawn(NamedTuple):
    """A configuration: a block, its input, and ``other(params, x)``, the same in PyTorch.

    ``params``: of fnn's layouts; by default those of init, drawn again. An array of either is a
    leaf of PyTorch's graph, so its gradient comes back in fnn's layout.
    """

    block: fnn.Block
    x: Any
    other: Callable[[Any, Any], Any]
    params: Any = None


class Row(NamedTuple):
    """``name``: the block's, and after a "/" which configurations are drawn."""

    name: str
    draw: Callable[[Rng], Drawn]
    cases: int = 8
    tolerance: float = 1e-10

    def __str__(self) -> str:
        return self.name


# ---- comparing -------------------------------------------------------------------------------


def is_float(leaf: Any) -> bool:
    return np.issubdtype(np.asarray(leaf).dtype, np.floating)


def leaf_of(array: Any) -> Any:
    tensor = torch.from_numpy(np.array(array))
    return tensor.requires_grad_() if is_float(array) else tensor


def redrawn(params: Any, rng: Rng) -> Any:
    """Others for the parameters of init, so that a bias is not 0 and a scale not 1."""
    return jax.tree.map(lambda p: rng.normal(size=p.shape), params)


def same(got: Any, want: Any, tolerance: float, what: str) -> None:
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, what
    size, off = (np.max(np.abs(v), initial=0) for v in (want, got - want))
    assert off <= tolerance * size + 1e-13, f"{what}: off by {off:.1e}, the largest is {size:.1e}"


def compare(drawn: Drawn, rng: Rng, tolerance: float = 1e-10) -> None:
    block, x, other, params = drawn
    if params is None:
        params = redrawn(jax.eval_shape(block.init, jax.random.key(0), x), rng)
    dy = jax.tree.map(
        lambda y: rng.normal(size=y.shape), jax.eval_shape(block.forward, params, x)[0]
    )

    @jax.jit
    def run(params: Any, x: Any, dy: Any) -> Any:
        y, residuals = block.forward(params, x)
        return y, block.backward(params, residuals, dy)

    y, gradients = run(params, x, dy)
    leaves = jax.tree.map(leaf_of, (params, x))
    wanted_y = jax.tree.leaves(other(*leaves))
    floats = [leaf for leaf in jax.tree.leaves(leaves) if leaf.requires_grad]
    wanted = torch.autograd.grad(
        wanted_y, floats, list(map(torch.from_numpy, jax.tree.leaves(dy))), allow_unused=True
    )
    for a, b in zip(jax.tree.leaves(y), wanted_y, strict=True):
        same(a, b.detach(), tolerance, "y")
    given = jax.tree_util.tree_leaves_with_path((params, x))
    with_none = jax.tree.leaves(gradients, is_leaf=lambda leaf: leaf is None)
    got = [(*at, g) for at, g in zip(given, with_none, strict=True) if is_float(at[1])]
    for (path, leaf, g), w in zip(got, wanted, strict=True):
        zeros, what = np.zeros(np.shape(leaf)), f"gradient{jax.tree_util.keystr(path)}"
        same(zeros if g is None else g, zeros if w is None else w, tolerance, what)


# ---- layers ----------------------------------------------------------------------------------


def batch(rng: Rng, most: int = 3, empty: bool = True) -> tuple[int, ...]:
    """Batch axes, now and then an empty one."""
    return tuple(int(n) for n in rng.integers(0 if empty else 1, 4, rng.integers(0, most + 1)))


def first(t: Any) -> Any:
    """(B, ..., C) as (B, C, ...)."""
    return t.movedim(-1, 1)


def last(t: Any) -> Any:
    return t.movedim(1, -1)


def affine(params: Any, x: Any) -> Any:
    return x @ params["w"] + params.get("b", 0)


def linear(rng: Rng) -> Drawn:
    block = fnn.linear(int(rng.integers(1, 5)), use_bias=bool(rng.integers(2)))
    return Drawn(block, rng.normal(size=(*batch(rng), 3)), affine)


def neuron(rng: Rng) -> Drawn:
    return Drawn(
        fnn.neuron(fnn.logistic()),
        rng.normal(size=(*batch(rng), 3)),
        lambda params, x: torch.sigmoid(affine(params["linear"], x)),
    )


def layer(rng: Rng) -> Drawn:
    return Drawn(
        fnn.layer(4, fnn.tanh()),
        rng.normal(size=(*batch(rng), 3)),
        lambda params, x: torch.tanh(affine(params["linear"], x)),
    )


def same_pads(n: int, k: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """TensorFlow's SAME."""
    total = max((-(-n // stride) - 1) * stride + (k - 1) * dilation + 1 - n, 0)
    return total // 2, total - total // 2


def pads_of(padding: Any, sizes: Any, kernel: Any, stride: Any, dilation: Any) -> list[Any]:
    if padding == "SAME":
        return list(map(same_pads, sizes, kernel, stride, dilation))
    return [(0, 0)] * len(sizes) if padding == "VALID" else [tuple(p) for p in padding]


def padded(x: Any, pads: Any, value: float = 0.0) -> Any:
    """(B, C, ...) with (low, high) for each of its last axes."""
    return F.pad(x, [p for pair in reversed(pads) for p in pair], value=value)


def sizes(rng: Rng, axes: int, low: int, high: int) -> tuple[int, ...]:
    return tuple(int(n) for n in rng.integers(low, high + 1, axes))


def padding_of(rng: Rng, axes: int, most: Any) -> Any:
    kind = rng.integers(3)
    if kind < 2:
        return ("SAME", "VALID")[kind]
    return tuple((int(rng.integers(m + 1)), int(rng.integers(m + 1))) for m in most)


def conv(rng: Rng, axes: int) -> Drawn:
    groups, kernel = int(rng.integers(1, 4)), sizes(rng, axes, 1, 4)
    stride, dilation = sizes(rng, axes, 1, 3), sizes(rng, axes, 1, 3)
    padding = padding_of(rng, axes, (2,) * axes)
    width = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    space = tuple(int(w + rng.integers(0, 4)) for w in width)
    if padding == "SAME":  # then kernels may be larger than x
        space = sizes(rng, axes, 1, 6)
    inputs, outputs = groups * int(rng.integers(1, 3)), groups * int(rng.integers(1, 3))
    block = fnn.conv(
        outputs, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups,
        use_bias=bool(rng.integers(2)),
    )  # fmt: skip
    pads = pads_of(padding, space, kernel, stride, dilation)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]

    def other(params: Any, x: Any) -> Any:
        w = params["w"].permute(-1, -2, *range(axes)).contiguous()
        x = padded(first(x), pads).contiguous()
        y = convolve(x, w, params.get("b"), stride, 0, dilation, groups)
        return last(y)

    return Drawn(block, rng.normal(size=(int(rng.integers(1, 4)), *space, inputs)), other)


def conv_transpose(rng: Rng, axes: int) -> Drawn:
    groups, kernel = int(rng.integers(1, 4)), sizes(rng, axes, 1, 4)
    stride, dilation = sizes(rng, axes, 1, 3), sizes(rng, axes, 1, 3)
    padding = int(rng.integers(3))
    more = tuple(int(rng.integers(s)) for s in stride)
    width = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    space = tuple(
        int(1 + max(0, -(-(2 * padding + 1 - w) // s)) + rng.integers(0, 4 if axes < 3 else 2))
        for w, s in zip(width, stride, strict=True)
    )
    inputs, outputs = groups * int(rng.integers(1, 3)), groups * int(rng.integers(1, 3))
    block = fnn.conv_transpose(
        outputs, kernel, stride=stride, padding=padding, output_padding=more, dilation=dilation,
        groups=groups, use_bias=bool(rng.integers(2)),
    )  # fmt: skip
    convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]

    def other(params: Any, x: Any) -> Any:
        w = params["w"].permute(-1, -2, *range(axes)).contiguous()
        x = first(x).contiguous()
        return last(convolve(x, w, params.get("b"), stride, padding, more, groups, dilation))

    return Drawn(block, rng.normal(size=(int(rng.integers(1, 4)), *space, inputs)), other)


def pool(rng: Rng, axes: int, largest: bool, ties: bool = False) -> Drawn:
    window, stride = sizes(rng, axes, 1, 4), sizes(rng, axes, 1, 4)
    space = tuple(int(k + rng.integers(0, 5)) for k in window)
    ceil = bool(rng.integers(2))
    # PyTorch pads both sides alike, up to half the window, where it also rounds up.
    halves = tuple((k // 2,) * 2 for k in window)
    padding = halves if ceil else padding_of(rng, axes, tuple(k - 1 for k in window))
    pads = pads_of(padding, space, window, stride, (1,) * axes)
    options = {"stride": stride, "padding": padding, "ceil_mode": "torch" if ceil else None}
    counted = bool(rng.integers(2))
    native = tuple(low for low, _ in pads) if ceil else 0

    def maximum(_: Any, x: Any) -> Any:
        x = first(x) if ceil else padded(first(x), pads, -math.inf)
        take = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[axes - 1]
        return last(take(x.contiguous(), window, stride, native, ceil_mode=ceil))

    def average(_: Any, x: Any) -> Any:
        take = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[axes - 1]
        if ceil:
            return last(take(first(x), window, stride, native, True, counted))
        y = take(padded(first(x), pads), window, stride)
        if not counted:
            y = y / take(padded(torch.ones_like(first(x)), pads), window, stride)
        return last(y)

    x = rng.normal(size=(int(rng.integers(1, 4)), *space, 2))
    x = np.round(x) if ties else x
    if largest:
        return Drawn(fnn.max_pool(window, **options), x, maximum)
    return Drawn(fnn.avg_pool(window, count_padding=counted, **options), x, average)


def local_response_norm(rng: Rng) -> Drawn:
    size, beta = int(rng.integers(1, 8)), float(rng.choice([0.25, 0.5, 0.75, 1, 1.3, 2, 0.6]))
    alpha, k = float(rng.uniform(0, 2)), float(rng.uniform(0.5, 2))
    return Drawn(
        fnn.local_response_norm(size, alpha=alpha, beta=beta, k=k),
        rng.normal(size=(2, 3, 2, int(rng.integers(1, 9)))),
        lambda _, x: last(F.local_response_norm(first(x), size, alpha, beta, k)),
    )


def layer_norm(rng: Rng) -> Drawn:
    # Of two entries z is +-1 and dx almost 0: neither library keeps its digits.
    shape = sizes(rng, int(rng.integers(1, 4)), 3, 5)
    axes = sorted(rng.permutation(len(shape))[: rng.integers(1, len(shape) + 1)].tolist())
    options = {"use_scale": bool(rng.integers(2)), "use_bias": bool(rng.integers(2))}
    epsilon = float(rng.choice([1e-5, 1e-3]))

    def other(params: Any, x: Any) -> Any:
        ends = tuple(range(-len(axes), 0))
        y = F.layer_norm(
            x.movedim(axes, ends), [shape[a] for a in axes], params.get("scale"),
            params.get("bias"), epsilon,
        )  # fmt: skip
        return y.movedim(ends, axes)

    x = rng.normal(size=shape) + rng.choice([0, 100])
    return Drawn(fnn.layer_norm(tuple(axes), epsilon=epsilon, **options), x, other)


def attention(rng: Rng) -> Drawn:
    """Also with more queries than a chunk has."""
    b, t, s = batch(rng), int(rng.integers(1, 90)), int(rng.integers(1, 9))
    groups, each, d, e = (int(n) for n in rng.integers(1, 4, 4))
    causal, masked = bool(rng.integers(2)), bool(rng.integers(2))
    scale = float(rng.uniform(0.2, 1)) if rng.integers(2) else None
    q, k, v = (
        rng.normal(size=(*b, *shape))
        for shape in ((t, groups * each, d), (s, groups, d), (s, groups, e))
    )
    mask = rng.random((*b, 1, t, s)) < 0.7
    mask[..., 0] = True  # PyTorch gives NaN where a query may look at nothing

    def other(_: Any, x: Any) -> Any:
        q, k, v = (a.movedim(-2, -3) for a in x[:3])
        k, v = (a.repeat_interleave(each, -3) for a in (k, v))
        looks = torch.ones(t, s, dtype=torch.bool).tril() if causal else None
        if masked:
            looks = x[3] if looks is None else x[3] & looks
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=looks, scale=scale)
        return y.movedim(-3, -2)

    x = (q, k, v, mask) if masked else (q, k, v)
    return Drawn(fnn.dot_product_attention(causal=causal, scale=scale), x, other)


def projected_attention(rng: Rng) -> Drawn:
    """nn.MultiheadAttention, of which fnn has no b of the keys: it changes nothing."""
    heads, each, t, s, other_features = (int(n) for n in rng.integers(1, 5, 5))
    causal, cross, bias = (bool(rng.integers(2)) for _ in range(3))
    features, cross = heads * each, cross and not causal
    x = rng.normal(size=(2, t, features))
    context = rng.normal(size=(2, s, other_features)) if cross else x

    def other(params: Any, x: Any) -> Any:
        x, context = x if cross else (x, x)
        of = torch.nn.MultiheadAttention(
            features, heads, bias=bias, batch_first=True, dtype=torch.float64,
            kdim=context.shape[-1], vdim=context.shape[-1],
        )  # fmt: skip
        own = {name: p["w"].T for name, p in params.items()}
        zero = torch.zeros(features, dtype=torch.float64)
        weights = {
            "q_proj_weight": own["query"], "k_proj_weight": own["key"],
            "v_proj_weight": own["value"], "out_proj.weight": own["out"],
            "in_proj_weight": torch.cat([own["query"], own["key"], own["value"]])
            if context.shape[-1] == features else None,
        }  # fmt: skip
        if bias:
            b = params["query"]["b"], zero, params["value"]["b"]
            weights |= {"in_proj_bias": torch.cat(b), "out_proj.bias": params["out"]["b"]}
        names = dict(of.named_parameters())
        weights = {name: w for name, w in weights.items() if name in names}
        assert weights.keys() == names.keys()
        looks = None if not causal else torch.ones(t, t, dtype=torch.bool).triu(1)
        return torch.func.functional_call(
            of, weights, (x, context, context), {"attn_mask": looks, "need_weights": False}
        )[0]

    block = fnn.attention(features, heads, causal=causal, cross=cross, use_bias=bias)
    return Drawn(block, (x, context) if cross else x, other)


def position_embedding(rng: Rng) -> Drawn:
    b, t, with_places = batch(rng), int(rng.integers(1, 6)), bool(rng.integers(2))
    x, places = rng.normal(size=(*b, t, 3)), rng.integers(0, 6, (*b, t))

    def other(params: Any, x: Any) -> Any:
        x, at = x if with_places else (x, torch.arange(t))
        return x + F.embedding(at, params["w"])

    return Drawn(fnn.position_embedding(6), (x, places) if with_places else x, other)


def rotary(rng: Rng) -> Drawn:
    """By complex numbers."""
    b, t, half, interleaved = batch(rng), *(int(n) for n in rng.integers(1, 5, 2)), rng.integers(2)
    x, places = rng.normal(size=(*b, t, 2, 2 * half)), rng.integers(0, 50, (*b, t))

    def other(_: Any, x: Any) -> Any:
        x, at = x
        angle = at[..., None, None] * 100.0 ** (-torch.arange(half).double() / half)
        pairs = x.unflatten(-1, (half, 2)) if interleaved else x.unflatten(-1, (2, half)).mT
        z = torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(angle), angle)
        y = torch.view_as_real(z)
        return (y if interleaved else y.mT).flatten(-2)

    return Drawn(fnn.rotary(base=100.0, interleaved=bool(interleaved)), (x, places), other)


def recurrent(kind: str) -> Callable[[Rng], Drawn]:
    """nn.RNN, nn.GRU and nn.LSTM, with their weights; of a state that is given, too."""
    make = {"RNN": fnn.rnn_cell, "GRU": fnn.gru_cell, "LSTM": fnn.lstm_cell}[kind]

    def draw(rng: Rng) -> Drawn:
        b, t, i, f = (int(n) for n in rng.integers(1, 6, 4))
        reverse, part = bool(rng.integers(2)), [None, 1, 2, 3][int(rng.integers(4))]
        x = rng.normal(size=(b, t, i))
        h, c = (np.round(rng.normal(size=(b, f)), 3) for _ in range(2))
        state = [None, (h, c) if kind == "LSTM" else h][int(rng.integers(2))]

        def other(params: Any, x: Any) -> Any:
            x, state = (x, None) if isinstance(x, torch.Tensor) else x
            of = getattr(torch.nn, kind)(i, f, batch_first=True, dtype=torch.float64)
            second = torch.zeros_like(params["input"]["b"])
            if kind == "GRU":
                second = torch.cat([second[: 2 * f], params["hidden"]["b"]])
            weights = {
                "weight_ih_l0": params["input"]["w"].T, "weight_hh_l0": params["hidden"]["w"].T,
                "bias_ih_l0": params["input"]["b"], "bias_hh_l0": second,
            }  # fmt: skip
            first = None if state is None else jax.tree.map(lambda s: s[None], state)
            x = x.flip(1) if reverse else x
            y, last = torch.func.functional_call(of, weights, (x, first))
            y = y.flip(1) if reverse else y
            return y if state is None else (y, jax.tree.map(lambda s: s[0], last))

        block = fnn.recurrent(make(f), reverse=reverse, rematerialize=part)
        return Drawn(block, x if state is None else (x, state), other)

    return draw


def fused_loss(rng: Rng) -> Drawn:
    n, v, f = (int(n) for n in rng.integers(1, 8, 3))
    smoothing, z_loss = float(rng.choice([0, 0.1])), float(rng.choice([0, 0.01]))
    h, w, t = 3 * rng.normal(size=(n, f)), rng.normal(size=(v, f)), rng.integers(0, v, n)
    counts = rng.random(n) < 0.7
    counts[0] = True
    t = np.where(counts, t, -100)

    def other(_: Any, x: Any) -> Any:
        (h, w), t = x
        z = h @ w.T
        top = torch.logsumexp(z, -1)[torch.from_numpy(counts)]
        return F.cross_entropy(z, t, label_smoothing=smoothing) + z_loss * (top**2).mean()

    E = fnn.linear_softmax_cross_entropy(
        ignore_label=-100, label_smoothing=smoothing, z_loss=z_loss
    )
    return Drawn(E, ((h, w), t), other)


def gated(rng: Rng) -> Drawn:
    def other(params: Any, x: Any) -> Any:
        gate, value = (affine(params[name], x) for name in ("gate", "value"))
        return F.silu(gate) * value

    block = fnn.gated(3, fnn.silu(), use_bias=bool(rng.integers(2)))
    return Drawn(block, rng.normal(size=(*batch(rng), 4)), other)


def unembedding(rng: Rng) -> Drawn:
    x = rng.normal(size=(*batch(rng), 3))
    return Drawn(fnn.unembedding(5), x, lambda params, x: F.linear(x, params["w"]))


def rms_norm(rng: Rng) -> Drawn:
    epsilon, scaled = float(rng.choice([1e-6, 1e-3])), bool(rng.integers(2))
    x = rng.normal(size=(*batch(rng), int(rng.integers(1, 7)))) * rng.choice([1, 100])

    def other(params: Any, x: Any) -> Any:
        return F.rms_norm(x, x.shape[-1:], params.get("scale"), epsilon)

    return Drawn(fnn.rms_norm(epsilon=epsilon, use_scale=scaled), x, other)


def group_norm(rng: Rng) -> Drawn:
    groups = int(rng.integers(1, 4))
    epsilon, flags = float(rng.choice([1e-5, 1e-3])), rng.integers(2, size=2).astype(bool)
    shape = (*sizes(rng, 1 + int(rng.integers(4)), 1, 4), groups * int(rng.integers(3, 5)))

    def other(params: Any, x: Any) -> Any:
        # Given a bias alone, PyTorch fails on the way back.
        leaves = params.get("scale", torch.ones(shape[-1]).double()), params.get("bias")
        return last(F.group_norm(first(x), groups, *leaves, eps=epsilon))

    use_scale, use_bias = map(bool, flags)
    block = fnn.group_norm(groups, epsilon=epsilon, use_scale=use_scale, use_bias=use_bias)
    return Drawn(block, rng.normal(size=shape), other)


def instance_norm(rng: Rng) -> Drawn:
    scaled, axes = bool(rng.integers(2)), 1 + int(rng.integers(3))
    # Of two entries z is +-1 and dx almost 0, as in layer_norm. Of one example PyTorch 2.13 has
    # another dbias, where dy is not contiguous.
    shape = (int(rng.integers(2, 5)), *sizes(rng, axes, 3 if axes == 1 else 2, 4), 3)

    def other(params: Any, x: Any) -> Any:
        scale = params.get("scale", torch.ones(3).double())  # as in group_norm
        return last(F.instance_norm(first(x), weight=scale, bias=params["bias"]))

    return Drawn(fnn.instance_norm(use_scale=scaled), rng.normal(size=shape), other)


def embedding(rng: Rng) -> Drawn:
    v = int(rng.integers(1, 6))
    ids = rng.integers(0, v, batch(rng)).astype(rng.choice(["int32", "int64", "uint8", "int8"]))
    return Drawn(fnn.embedding(v, 3), ids, lambda params, ids: F.embedding(ids.long(), params["w"]))


def dropout(rng: Rng) -> Drawn:
    """The mask is whatever forward makes of ones."""
    rate, x, key = float(rng.uniform(0, 0.9)), rng.normal(size=(4, 5)), jax.random.key(3)
    block = fnn.dropout(rate)
    kept = np.array(block.forward({}, np.ones_like(x), key)[0])
    with_key = block._replace(forward=lambda params, x: block.forward(params, x, key))
    return Drawn(with_key, x, lambda _, x: x * torch.from_numpy(kept))


# ---- functions of arrays ---------------------------------------------------------------------


def of_one(
    make: Callable[[], fnn.Block], f: Callable[[Any], Any], positive: bool = False
) -> Callable[[Rng], Drawn]:
    def draw(rng: Rng) -> Drawn:
        x = rng.choice([0.1, 1, 10]) * rng.normal(size=batch(rng))
        return Drawn(make(), np.abs(x) + 0.01 if positive else x, lambda _, x: f(x))

    return draw


def of_two(
    make: Callable[[], fnn.Block], f: Callable[..., Any], positive: bool = False
) -> Callable[[Rng], Drawn]:
    """With broadcasting: axes of 1, axes left out."""

    def draw(rng: Rng) -> Drawn:
        shape = sizes(rng, int(rng.integers(0, 4)), 1, 3)

        def part() -> Any:
            kept = tuple(n if rng.integers(3) else 1 for n in shape)
            x = rng.normal(size=kept[rng.integers(len(kept) + 1) :])
            return np.abs(x) + 0.1 if positive else x

        return Drawn(make(), (part(), part()), lambda _, xs: f(*xs))

    return draw


def reduction(make: Callable[..., fnn.Block], f: Callable[..., Any]) -> Callable[[Rng], Drawn]:
    def draw(rng: Rng) -> Drawn:
        shape, keepdims = sizes(rng, 3, 1, 3), bool(rng.integers(2))
        axis = tuple(rng.permutation(3)[: rng.integers(1, 4)].tolist())
        return Drawn(
            make(axis=axis, keepdims=keepdims),
            rng.normal(size=shape),
            lambda _, x: f(x, axis, keepdims),
        )

    return draw


def along_an_axis(make: Callable[..., fnn.Block], f: Callable[..., Any]) -> Callable[[Rng], Drawn]:
    def draw(rng: Rng) -> Drawn:
        x, axis = 3 * rng.normal(size=sizes(rng, 3, 1, 4)), int(rng.integers(-3, 3))
        return Drawn(make(axis=axis), x, lambda _, x: f(x, axis))

    return draw


def concatenate(rng: Rng) -> Drawn:
    axis = int(rng.integers(3))
    shapes = [[2, 3, 2] for _ in range(3)]
    for shape in shapes:
        shape[axis] = int(rng.integers(0, 4))
    xs = tuple(rng.normal(size=shape) for shape in shapes)
    return Drawn(fnn.concatenate(axis), xs, lambda _, xs: torch.cat(xs, axis))


def flatten(rng: Rng) -> Drawn:
    keep = int(rng.integers(1, 4))
    return Drawn(
        fnn.flatten(keep),
        rng.normal(size=(2, 3, 2, 2)),
        lambda _, x: x.reshape(*x.shape[:keep], -1),
    )


def power(rng: Rng) -> Drawn:
    p = float(rng.choice([-2, -1, -0.5, 0, 0.5, 1, 2, 3, 1.7]))
    return Drawn(fnn.power(p), rng.uniform(0.1, 3, 5), lambda _, x: x**p)


def heaviside(x: Any) -> Any:
    return (x >= 0).double() + 0 * x


# PyTorch rounds 1 / alpha and 1 / 6 to float32: the formula in float64 is the referee.
def celu(rng: Rng) -> Drawn:
    alpha = float(rng.uniform(0.3, 3))
    return Drawn(
        fnn.celu(alpha),
        3 * rng.normal(size=6),
        lambda _, x: torch.where(x > 0, x, alpha * torch.expm1(torch.clamp(x, max=0) / alpha)),
    )


def hard_sigmoid(x: Any) -> Any:
    return torch.clamp(x + 3, 0, 6) / 6


# ---- losses ----------------------------------------------------------------------------------


def weighted(losses: Any, weights: Any) -> Any:
    """The mean over examples, of weights where there are any: sum(w E) / sum(w)."""
    losses = losses.reshape(len(losses), -1).sum(1)
    return losses.mean() if weights is None else (weights * losses).sum() / weights.sum()


def loss(
    make: Callable[[], fnn.Block],
    f: Callable[[Any, Any], Any],
    prediction: Callable[[Rng, tuple[int, ...]], Any],
    target: Callable[[Rng, tuple[int, ...]], Any],
) -> Callable[[Rng], Drawn]:
    """``f(prediction, target)``: the losses of all examples (and outputs)."""

    def draw(rng: Rng) -> Drawn:
        shape = sizes(rng, 2, 1, 5)
        x = prediction(rng, shape), target(rng, shape)
        if rng.integers(2):
            x = (*x, rng.uniform(0.1, 2, shape[:1]))
        return Drawn(make(), x, lambda _, x: weighted(f(*x[:2]), x[2] if len(x) > 2 else None))

    return draw


def logits(rng: Rng, shape: Any) -> Any:
    return 2 * rng.normal(size=shape)


def shares(rng: Rng, shape: Any) -> Any:
    return rng.uniform(0.05, 0.95, shape)


def rows(rng: Rng, shape: Any) -> Any:
    """Probabilities, or (half of the time) numbers that do not sum to 1."""
    p = shares(rng, shape)
    return p / p.sum(-1, keepdims=True) if rng.integers(2) else p


def bits(rng: Rng, shape: Any) -> Any:
    return rng.integers(0, 2, shape).astype(bool if rng.integers(2) else np.int32)


def labels(rng: Rng, shape: Any) -> Any:
    return rng.integers(0, shape[1], shape[0]).astype(np.int32)


def cross_entropy_of(log_p: Any, t: Any) -> Any:
    if t.ndim == 1:
        return F.nll_loss(log_p, t.long(), reduction="none")
    return -(t * log_p).sum(-1)


def soft_cross_entropy(z: Any, t: Any) -> Any:
    return cross_entropy_of(F.log_softmax(z, -1), t)


def binary_from_logits(z: Any, t: Any) -> Any:
    # PyTorch's own, whose gradient by a float target it has too.
    return F.binary_cross_entropy_with_logits(z, t.double(), reduction="none")


def binary(p: Any, t: Any) -> Any:
    t = t.double()
    return -(t * torch.log(p) + (1 - t) * torch.log1p(-p))


BINARY = functools.partial(fnn.binary_cross_entropy, from_logits=False)

# ---- networks --------------------------------------------------------------------------------

WIDTH = 3


def network(rng: Rng, depth: int = 3) -> tuple[fnn.Block, Callable[[Any, Any], Any]]:
    """A random network of features to features, and the same in PyTorch."""
    kinds = ["layer", "layer", "norm"]
    if depth:
        kinds = ["serial", "residual", "shortcut", "repeat", "remat", "fan", "shared", "freeze"]
    kind = rng.choice(kinds)
    if kind == "layer":
        block, f = [
            (fnn.tanh(), torch.tanh),
            (fnn.logistic(), torch.sigmoid),
            (fnn.softplus(), F.softplus),
        ][rng.integers(3)]
        return fnn.layer(WIDTH, block), lambda p, x: f(affine(p["linear"], x))
    if kind == "norm":
        return fnn.layer_norm(), lambda p, x: F.layer_norm(x, [WIDTH], p["scale"], p["bias"])
    one, f = network(rng, depth - 1)
    if kind == "residual":
        return fnn.residual(one), lambda p, x: f(p["block"], x) + x
    if kind == "remat":
        return fnn.rematerialize(one), f
    if kind == "freeze":
        detached = functools.partial(jax.tree.map, torch.Tensor.detach)
        return fnn.freeze(one), lambda p, x: f(detached(p), x)
    if kind == "repeat":
        n = int(rng.integers(1, 4))

        def loop(p: Any, x: Any) -> Any:
            for i in range(n):
                x = f(jax.tree.map(lambda leaf, i=i: leaf[i], p), x)
            return x

        return fnn.repeat(one, n), loop
    if kind == "shared":
        nodes = [("a", one, "x"), ("act", fnn.tanh(), "a"), ("b", one, "act", "a")]
        return fnn.graph("x", nodes, "b"), lambda p, x: f(p["a"], torch.tanh(f(p["a"], x)))
    two, g = network(rng, depth - 1)
    if kind == "serial":
        return fnn.serial(a=one, b=two), lambda p, x: g(p["b"], f(p["a"], x))
    if kind == "shortcut":
        return fnn.residual(one, two), lambda p, x: f(p["block"], x) + g(p["shortcut"], x)
    nodes = [("a", one, "x"), ("b", two, "x"), ("y", fnn.multiply(), ("a", "b"))]
    return fnn.graph("x", nodes, "y"), lambda p, x: f(p["a"], x) * g(p["b"], x)


def random_network(rng: Rng) -> Drawn:
    block, other = network(rng)
    return Drawn(block, rng.normal(size=(2, WIDTH)), other)


# ---- the table -------------------------------------------------------------------------------

LAYERS = [
    Row("linear", linear, 16),
    Row("neuron", neuron),
    Row("layer", layer),
    Row("conv/1-D", lambda rng: conv(rng, 1), 24),
    Row("conv/2-D", lambda rng: conv(rng, 2), 32),
    Row("conv/3-D", lambda rng: conv(rng, 3), 12, 1e-12),
    Row("conv_transpose/1-D", lambda rng: conv_transpose(rng, 1), 24, 1e-12),
    Row("conv_transpose/2-D", lambda rng: conv_transpose(rng, 2), 32, 1e-12),
    Row("conv_transpose/3-D", lambda rng: conv_transpose(rng, 3), 12, 1e-12),
    Row("max_pool/1-D", lambda rng: pool(rng, 1, True), 12),
    Row("max_pool/2-D", lambda rng: pool(rng, 2, True), 20),
    Row("max_pool/3-D", lambda rng: pool(rng, 3, True)),
    Row("avg_pool/3-D", lambda rng: pool(rng, 3, False)),
    Row("max_pool/ties", lambda rng: pool(rng, 2, True, ties=True), 12),
    Row("avg_pool/1-D", lambda rng: pool(rng, 1, False), 12),
    Row("avg_pool/2-D", lambda rng: pool(rng, 2, False), 20),
    Row(
        "global_avg_pool",
        lambda rng: Drawn(
            fnn.global_avg_pool(), rng.normal(size=sizes(rng, 4, 1, 4)), lambda _, x: x.mean((1, 2))
        ),
    ),
    Row("local_response_norm", local_response_norm, 16),
    Row("layer_norm", layer_norm, 24),
    Row("dot_product_attention", attention, 24),
    Row("attention", projected_attention, 16),
    Row("position_embedding", position_embedding),
    *(Row(f"recurrent/{kind}", recurrent(kind), 12, 1e-12) for kind in ("RNN", "GRU", "LSTM")),
    Row("rotary", rotary),
    Row("gated", gated),
    Row("unembedding", unembedding),
    Row(
        "split_heads",
        lambda rng: Drawn(
            fnn.split_heads(2), rng.normal(size=(2, 3, 4)), lambda _, x: x.unflatten(-1, (2, 2))
        ),
        2,
    ),
    Row(
        "merge_heads",
        lambda rng: Drawn(
            fnn.merge_heads(), rng.normal(size=(2, 3, 2, 2)), lambda _, x: x.flatten(-2)
        ),
        2,
    ),
    Row("rms_norm", rms_norm, 16),
    Row("group_norm", group_norm, 24, 1e-12),
    Row("instance_norm", instance_norm, 16, 1e-12),
    Row("embedding", embedding, 12),
    Row("dropout", dropout),
]

FUNCTIONS = [
    Row("identity", of_one(fnn.identity, lambda x: x)),
    Row("step", of_one(fnn.step, heaviside)),
    # PyTorch's derivative, y (1 - y), loses digits where y is near 1.
    Row("logistic", of_one(fnn.logistic, lambda x: 1 / (1 + torch.exp(-x)))),
    Row("tanh", of_one(fnn.tanh, torch.tanh)),
    Row("relu", of_one(fnn.relu, F.relu)),
    Row("leaky_relu", of_one(lambda: fnn.leaky_relu(0.2), lambda x: F.leaky_relu(x, 0.2))),
    Row("hard_tanh", of_one(fnn.hard_tanh, F.hardtanh)),
    Row("hard_sigmoid", of_one(fnn.hard_sigmoid, hard_sigmoid)),
    Row("absolute", of_one(fnn.absolute, torch.abs)),
    Row("elu", of_one(lambda: fnn.elu(0.7), lambda x: F.elu(x, 0.7))),
    Row("selu", of_one(fnn.selu, F.selu)),
    Row("celu", celu),
    Row("softplus", of_one(fnn.softplus, lambda x: F.softplus(x, threshold=1e3))),
    Row("softsign", of_one(fnn.softsign, F.softsign)),
    Row("silu", of_one(fnn.silu, F.silu)),
    Row("mish", of_one(fnn.mish, F.mish)),
    Row("gelu", of_one(fnn.gelu, F.gelu)),
    Row(
        "gelu/approximate",
        of_one(lambda: fnn.gelu(approximate=True), lambda x: F.gelu(x, approximate="tanh")),
    ),
    Row(
        "straight_through",
        of_one(
            lambda: fnn.straight_through(fnn.step(), fnn.logistic()),
            lambda x: (s := torch.sigmoid(x)) + ((x >= 0).double() - s).detach(),
        ),
    ),
    Row(
        "elementwise",
        of_one(
            lambda: fnn.elementwise("cos", jax.numpy.cos, lambda x: -jax.numpy.sin(x)), torch.cos
        ),
    ),
    Row("softmax", along_an_axis(fnn.softmax, torch.softmax), 12),
    Row("log_softmax", along_an_axis(fnn.log_softmax, torch.log_softmax), 12),
    Row("add", of_two(fnn.add, torch.add)),
    Row("subtract", of_two(fnn.subtract, torch.subtract)),
    Row("multiply", of_two(fnn.multiply, torch.multiply)),
    Row("divide", of_two(fnn.divide, torch.divide)),
    Row("maximum", of_two(fnn.maximum, torch.maximum)),
    Row("minimum", of_two(fnn.minimum, torch.minimum)),
    Row("power", power, 16),
    Row("power/two inputs", of_two(fnn.power, torch.pow, positive=True)),
    Row("negate", of_one(fnn.negate, torch.negative)),
    Row("scale", of_one(lambda: fnn.scale(-0.3), lambda x: -0.3 * x)),
    Row("exp", of_one(fnn.exp, torch.exp)),
    Row("log", of_one(fnn.log, torch.log, positive=True)),
    Row("square", of_one(fnn.square, torch.square)),
    Row("sqrt", of_one(fnn.sqrt, torch.sqrt, positive=True)),
    Row("sum", reduction(fnn.sum, torch.sum)),
    Row("mean", reduction(fnn.mean, torch.mean)),
    Row("concatenate", concatenate),
    Row("flatten", flatten, 4),
    Row(
        "item",
        lambda rng: Drawn(fnn.item(1), tuple(rng.normal(size=(3, 2))), lambda _, xs: xs[1] * 1),
        2,
    ),
]

LOSSES = [
    Row("linear_softmax_cross_entropy", fused_loss, 16),
    Row(
        "squared_error", loss(fnn.squared_error, lambda y, t: (y - t) ** 2 / 2, logits, logits), 16
    ),
    Row(
        "binary_cross_entropy/bits",
        loss(fnn.binary_cross_entropy, binary_from_logits, logits, bits),
        12,
    ),
    Row(
        "binary_cross_entropy/soft",
        loss(fnn.binary_cross_entropy, binary_from_logits, logits, shares),
        12,
    ),
    Row("binary_cross_entropy/probabilities, bits", loss(BINARY, binary, shares, bits), 12),
    Row("binary_cross_entropy/probabilities, soft", loss(BINARY, binary, shares, shares), 12),
    Row(
        "softmax_cross_entropy/labels",
        loss(fnn.softmax_cross_entropy, soft_cross_entropy, logits, labels),
        12,
    ),
    Row(
        "softmax_cross_entropy/rows",
        loss(fnn.softmax_cross_entropy, soft_cross_entropy, logits, rows),
        12,
    ),
    Row(
        "cross_entropy/labels",
        loss(fnn.cross_entropy, lambda p, t: cross_entropy_of(torch.log(p), t), rows, labels),
        12,
    ),
    Row(
        "cross_entropy/rows",
        loss(fnn.cross_entropy, lambda p, t: cross_entropy_of(torch.log(p), t), rows, rows),
        12,
    ),
]

ROWS = [*LAYERS, *FUNCTIONS, *LOSSES, Row("graph/random networks", random_network, 24)]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_value_and_gradients_are_those_of_pytorch(row: Row) -> None:
    for case in range(row.cases):
        rng = np.random.default_rng((zlib.crc32(row.name.encode()), case))
        compare(row.draw(rng), rng, row.tolerance)


# ---- batch_norm: running statistics, inference -------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_batch_norm_of_three_steps_and_inference_are_those_of_pytorch(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(2, 6)), *sizes(rng, int(rng.integers(3)), 1, 3), 4)
    momentum, n = float(rng.uniform(0, 1)), math.prod(shape[:-1])
    block, x = fnn.batch_norm(momentum=momentum), rng.normal(size=shape)
    params = block.init(jax.random.key(0), x)
    params |= {"scale": rng.normal(size=4), "bias": rng.normal(size=4)}
    mean, var = torch.zeros(4).double(), torch.ones(4).double()

    def other(p: Any, x: Any) -> Any:
        return last(F.batch_norm(first(x), mean, var, p["scale"], p["bias"], True, 1 - momentum))

    for _ in range(3):
        x = rng.normal(size=shape) + rng.choice([0, 100])
        before = var.clone()
        compare(Drawn(block, x, other, params), rng, 1e-9)
        # PyTorch's running variance is over n - 1, fnn's over n.
        var.copy_(momentum * before + (var - momentum * before) * (n - 1) / n)
        params = block.rules.update_statistics(params, block.forward(params, x)[1])
        same(params["statistics"]["mean"], mean, 1e-10, "running mean")
        same(params["statistics"]["var"], var, 1e-10, "running var")

    def inferred(p: Any, x: Any) -> Any:
        return last(F.batch_norm(first(x), mean, var, p["scale"], p["bias"]))

    compare(Drawn(fnn.inference(block), x, inferred, params), rng)


# ---- where PyTorch loses digits, and where the two differ by design ----------------------------


def sure(*numbers: float) -> Any:
    return [mp.mpf(n) for n in numbers]


def gradient(block: fnn.Block, x: Any, dy: Any) -> Any:
    return block.backward({}, block.forward({}, x)[1], dy)[1]


def test_softmax_of_a_confident_row_keeps_the_small_entry() -> None:
    x, dy = np.array([100.0, 0, 3]), np.array([1.0, 2, -0.5])
    with mp.workdps(80):
        e = [mp.exp(v) for v in sure(*x)]
        p = [v / mp.fsum(e) for v in e]
        mean = mp.fdot(p, sure(*dy))
        want = np.array([float(q * (d - mean)) for q, d in zip(p, sure(*dy), strict=True)])
    np.testing.assert_allclose(gradient(fnn.softmax(), x, dy), want, 1e-10)
    leaf = leaf_of(x)
    torchs = torch.autograd.grad(torch.softmax(leaf, 0), leaf, torch.from_numpy(dy))[0]
    assert torchs[0] == 0 != want[0]


def test_cross_entropies_of_confident_rows_keep_their_digits() -> None:
    with mp.workdps(80):
        e = [mp.exp(v) for v in sure(50, 0, -5)]
        rest = (e[1] + e[2]) / mp.fsum(e)
        loss, slope = float(mp.log1p((e[1] + e[2]) / e[0])), -float(rest)
        bce, bce_slope = float(mp.log1p(mp.exp(-50))), -float(1 / (1 + mp.exp(50)))
    x = np.array([[50.0, 0, -5]]), np.array([0])
    value, residuals = fnn.softmax_cross_entropy().forward({}, x)
    dx = fnn.softmax_cross_entropy().backward({}, residuals, 1.0)[1][0]
    np.testing.assert_allclose([value, dx[0, 0]], [loss, slope], 1e-10)
    x = np.array([50.0]), np.array([1])
    value, residuals = fnn.binary_cross_entropy().forward({}, x)
    dx = fnn.binary_cross_entropy().backward({}, residuals, 1.0)[1][0]
    np.testing.assert_allclose([value, dx[0]], [bce, bce_slope], 1e-10)


def torch_gradient(f: Callable[[Any], Any], x: Any, dy: Any) -> Any:
    leaf = leaf_of(x)
    return torch.autograd.grad(f(leaf), leaf, torch.from_numpy(dy))[0]


KINKS = {
    "relu": (fnn.relu(), F.relu, [0.0, math.inf, -math.inf]),
    "leaky_relu": (fnn.leaky_relu(0.2), lambda x: F.leaky_relu(x, 0.2), [0.0]),
    "hard_tanh": (fnn.hard_tanh(), F.hardtanh, [-1.0, 1.0]),
    "hard_sigmoid": (fnn.hard_sigmoid(), F.hardsigmoid, [-3.0, 3.0]),
    "absolute": (fnn.absolute(), torch.abs, [0.0]),
    "elu": (fnn.elu(0.5), lambda x: F.elu(x, 0.5), [0.0]),
    "celu": (fnn.celu(0.5), lambda x: F.celu(x, 0.5), [0.0]),
    "softsign": (fnn.softsign(), F.softsign, [0.0]),
    "sqrt": (fnn.sqrt(), torch.sqrt, [0.0]),
    "log": (fnn.log(), torch.log, [0.0, -1.0]),
    "maximum": (
        fnn.serial(both=fnn.fan_out(fnn.identity(), fnn.square()), y=fnn.maximum()),
        lambda x: torch.maximum(x, x * x),
        [0.0, 1.0],
    ),
}


@pytest.mark.parametrize("name", KINKS)
def test_at_kinks_and_edges_the_gradient_is_pytorchs(name: str) -> None:
    block, f, at = KINKS[name]
    x, dy = np.array(at), np.ones(len(at))
    y, residuals = block.forward(block.init(jax.random.key(0), x), x)
    np.testing.assert_array_equal(y, f(torch.from_numpy(x)))
    dx = block.backward(block.init(jax.random.key(0), x), residuals, dy)[1]
    np.testing.assert_array_equal(dx, torch_gradient(f, x, dy))


def running_var() -> tuple[Any, Any]:
    x, block = np.array([[1.0], [3.0]]), fnn.batch_norm(momentum=0.9)
    params = block.init(jax.random.key(0), x)
    moved = block.rules.update_statistics(params, block.forward(params, x)[1])
    theirs = torch.ones(1).double()
    F.batch_norm(torch.from_numpy(x), torch.zeros(1).double(), theirs, None, None, True, 0.1)
    return moved["statistics"]["var"], theirs


def of_a_nan() -> tuple[Any, Any]:
    x, dy = np.array([1.0, np.nan, np.nan, 0]).reshape(1, 2, 2, 1), np.ones((1, 1, 1, 1))
    theirs = torch_gradient(lambda x: F.max_pool2d(first(x), 2), x, dy)
    return gradient(fnn.max_pool(2), x, dy), theirs


def of_an_id_too_large() -> tuple[Any, Any]:
    w = np.ones((2, 1))
    with pytest.raises(IndexError):
        F.embedding(torch.tensor([2]), torch.from_numpy(w))
    return fnn.embedding(2, 1).forward({"w": w}, np.array([2]))[0], w[:1]


def halves() -> tuple[Any, Any]:
    y, t = np.ones((2, 3)), np.zeros((2, 3))
    theirs = F.mse_loss(torch.from_numpy(y), torch.from_numpy(t))
    return fnn.squared_error().forward({}, (y, t))[0], theirs


DIFFERENCES = [
    (fnn.batch_norm, "over n (PyTorch's over n - 1)", running_var),
    (fnn.max_pool, "the first NaN of a window gets its dy", of_a_nan),
    (fnn.embedding, "not less than V has no row: its y is NaN", of_an_id_too_large),
    (fnn.squared_error, "1/2 |y - t|^2, averaged over the n examples", halves),
]


@pytest.mark.parametrize(
    ("block", "says", "shows"), DIFFERENCES, ids=lambda v: getattr(v, "__name__", "")
)
def test_a_difference_by_design_is_in_the_docstring(
    block: Callable[..., fnn.Block], says: str, shows: Callable[[], tuple[Any, Any]]
) -> None:
    ours, theirs = shows()
    assert not np.allclose(ours, theirs)
    assert says in " ".join((block.__doc__ or "").split())


# ---- every block ------------------------------------------------------------------------------

# In random networks, or in tests of their own above.
ELSEWHERE = {
    "batch_norm", "fan_out", "freeze", "graph", "rematerialize", "repeat", "residual", "serial",
}  # fmt: skip
# They add nothing of their own to backward, or compose what has rows.
COMPOSED = {
    "with_loss", "inference", "map_nodes", "deep_supervision", "inception", "logistic_regression",
    "mlp", "cnn", "transformer", "microgpt", "rnn_cell", "gru_cell", "lstm_cell",
}  # fmt: skip


def test_every_block_has_a_row() -> None:
    from tests.zoo import CASES

    rows = {row.name.split("/")[0] for row in ROWS} | ELSEWHERE | COMPOSED
    assert {case.name for case in CASES} - rows == set()
