"""The head of a language model and its loss in one: no array of tokens x vocabulary.

Symbols: N tokens (all batch axes, flattened), V words, F features; h (N, F) what the network says
of a token, w (V, F) a row for each word, y the labels.

    z = h w^T                      (N, V)
    l = ln sum_j e^z_j - z_y       (N,)
    E = sum(l) / N

The logits z are the largest array of a small language model, by far: 8192 tokens of 50257 words
are 1.6 GB, and their gradient as much again. But dz = p - [j = y], p = softmax(z), needs nothing
but the row itself, and

    dh = dz w        dw = dz^T h

need dz once. So forward takes some tokens at a time: z, dz, then their dh and their part of dw, and
z and dz are forgotten. The loss is one number, so backward has only to multiply by its cotangent.

Why a loss of ((h, w), labels), and not a network that ends in its own loss: a loss is a block of
(prediction, target) without parameters, which ``fit``, ``value_and_grad`` and ``with_loss`` take as
it is. Here the prediction is two factors in place of their product, and
``unembedding(V, factored=True)`` is the head that gives them: its w may be the embedding's, at
inference it multiplies, and its gradient reaches w as that of any output does.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fnn.arguments import NonNegative, Share, checked
from fnn.arrays import Shape, compute_dtype, is_floating
from fnn.block import (
    Block,
    BlockTypeError,
    BlockValueError,
    Key,
    Kind,
    Params,
    Residuals,
    Rules,
    Value,
)
from fnn.blocks.linear import contract
from fnn.blocks.numerics import two_diff_error
from fnn.compiling import by_platform
from fnn.refusals import as_array, as_cotangent, described, elementary, require_floating

# Of z at a time. On CPU 16 MB, as larger is no faster, and on TPUs, where that stays on the chip.
# On GPUs w and dw are read from memory for each part: with 128 MB less is moved than by jax.grad.
ENTRIES, ENTRIES_ON_GPUS = 2**22, 2**25


@checked
def linear_softmax_cross_entropy(
    *,
    ignore_label: int | None = None,
    label_smoothing: Share = 0.0,
    z_loss: NonNegative = 0.0,
) -> Block:
    """E = mean of -ln softmax(h w^T)_y, without ever having all of h w^T.

    Computed in float32 at least, whatever h and w are, some tokens at a time; the gradients are
    exact and computed with the value (derived in :mod:`fnn.blocks.fused_loss`). Of a confident row
    they keep their digits, as in :func:`softmax_cross_entropy`.

    Args:
      ignore_label: a label, such as -1, whose tokens count for nothing.
      label_smoothing: s: the target of the right word is 1 - s, and s / V more of every word
        (Szegedy et al. 2016, arXiv 1512.00567).
      z_loss: c: c (ln sum_j e^z_j)^2 is added for each token, which keeps logits near 0 (Chowdhery
        et al. 2022, arXiv 2204.02311; 1e-4 there).

    Returns:
      A block of ``(prediction, labels[, weights])``. The prediction is the pair (h, w), h (B..., F)
      and w (V, F), that ``unembedding(V, factored=True)`` gives; or logits (B..., V), which it
      gives at inference. Labels: integers (B...) from 0 to V - 1; one out of range makes the loss
      NaN (and is refused by ``fit``). Weights: (B...), of a weighted mean. Residuals: the gradients
      of h and w (of logits, the logits), and of weights the losses.

    Raises:
      BlockValueError: h and w of other features; labels or weights of another shape.
      BlockTypeError: h or w is not floating, labels are not integers.

    >>> import fnn, jax.numpy as jnp
    >>> E = fnn.linear_softmax_cross_entropy(ignore_label=-1)
    >>> h, w = jnp.array([[30.0], [1.0]]), jnp.array([[1.0], [0.0]])
    >>> value, residuals = E.forward({}, ((h, w), jnp.array([0, -1])))
    >>> (dh, dw), _ = E.backward({}, residuals, 1.0)[1]
    >>> f"{value:.4g}", f"{dh[0, 0]:.4g}", dh[1]  # ln(1 + e^-30), and its derivative
    ('9.358e-14', '-9.358e-14', Array([0.], dtype=float32))
    """
    name = "linear_softmax_cross_entropy"

    def of_rows(
        z: jax.Array, y: jax.Array, slopes: bool = True, product: bool = False
    ) -> tuple[jax.Array, Any]:
        """The losses of some tokens, and dz; y is V where there is no label.

        ``product``: z is rounded by more than m - z is, so that the error of that does not matter.
        Without it XLA for NVIDIA's GPUs computes dz in one kernel.
        """
        vocabulary = z.shape[-1]
        here = lax.broadcasted_iota(jnp.int32, z.shape, z.ndim - 1) == y[..., None]
        # As in softmax_cross_entropy: the label's e is apart from the sum of the others'.
        m = lax.stop_gradient(jnp.max(z, -1, keepdims=True))
        gap = m - z
        e = jnp.exp(-gap)
        e = e if product else e - e * two_diff_error(m, z)
        rest = jnp.sum(jnp.where(here, e - 1, e), -1, keepdims=True)
        log_rest = jnp.log1p(rest)
        losses = jnp.sum(jnp.where(here, gap, 0), -1) + log_rest[..., 0]
        top = (m + log_rest)[..., 0]  # ln sum_j e^z_j
        if label_smoothing:
            even = jnp.mean(gap, -1) + log_rest[..., 0]
            losses = (1 - label_smoothing) * losses + label_smoothing * even
        losses = losses + z_loss * jnp.square(top) if z_loss else losses
        losses = jnp.where(y == vocabulary, jnp.nan, losses)
        if not slopes:
            return losses, None
        # dz = p - [j = y], and of the label minus the sum of the others' p.
        of_label = jnp.sum(jnp.where(here, e, 0), -1, keepdims=True)
        p = e / (1 + rest)
        dz = jnp.where(here, -(rest + (1 - of_label)) / (1 + rest), p)
        if label_smoothing:
            dz = (1 - label_smoothing) * dz + label_smoothing * (p - 1 / vocabulary)
        dz = dz + (2 * z_loss) * top[..., None] * p if z_loss else dz
        return losses, jnp.where(y[..., None] == vocabulary, jnp.nan, dz)

    def over_tokens(
        h: jax.Array, w: jax.Array, y: jax.Array, share: jax.Array, *, entries: int
    ) -> Any:
        """The losses, share dh and the sum of share dw, some entries of z at a time."""
        count, vocabulary, wide = h.shape[0], w.shape[0], share.dtype
        h = jnp.where(share[:, None] == 0, 0, h)  # 0 times NaN would reach dw
        some = count
        if isinstance(count, int):  # else open to jax.export
            parts = max(-(-count * vocabulary // entries), 1)
            some = max(-(-count // parts), 1)
            parts = -(-count // some)
            fill = some * parts - count
            h, y, share = (jnp.pad(a, [(0, fill)] + [(0, 0)] * (a.ndim - 1)) for a in (h, y, share))

        def part(dw: jax.Array, tokens: tuple[jax.Array, ...]) -> tuple[jax.Array, Any]:
            h, y, share = tokens
            losses, dz = of_rows(contract(h, w, ((1,), (1,))).astype(wide), y, product=True)
            dz = jnp.where(share[:, None] == 0, 0, share[:, None] * dz)
            dh = contract(dz.astype(h.dtype), w, ((1,), (0,)))
            dw = dw + contract(dz.astype(h.dtype), h, ((0,), (0,)), like=w)
            return dw, (losses, dh.astype(h.dtype))

        start = jnp.zeros_like(w, dtype=wide)
        if some is count or some == count:
            dw, (losses, dh) = part(start, (h, y, share))
            return losses, dh, dw
        cut = tuple(a.reshape(parts, some, *a.shape[1:]) for a in (h, y, share))
        dw, found = lax.scan(part, start, cut)
        losses, dh = (a.reshape(-1, *a.shape[2:])[:count] for a in found)
        return losses, dh, dw

    def inputs(x: Value) -> tuple[Any, jax.Array, jax.Array | None]:
        if not isinstance(x, (tuple, list)) or len(x) not in (2, 3):
            raise BlockTypeError(
                name, f"x is {described(x)}, needs ((h, w), labels) or ((h, w), labels, weights)"
            )
        prediction, labels, *weights = x
        if isinstance(prediction, (tuple, list)):
            if len(prediction) != 2:
                raise BlockTypeError(
                    name, f"prediction is {described(prediction)}, needs (h, w): end the network "
                    "in unembedding(vocabulary, factored=True)",
                )  # fmt: skip
            for what, a in zip("hw", prediction, strict=True):
                require_floating(name, what, a)
            h, w = map(jnp.asarray, prediction)
            if not h.ndim or w.ndim != 2 or h.shape[-1] != w.shape[-1] or not w.shape[0]:
                raise BlockValueError(
                    name, f"h has shape {h.shape} and w {w.shape}, needs h (B..., features) and "
                    "w (vocabulary, features) of one id or more",
                )  # fmt: skip
            prediction, batch = (h, w), h.shape[:-1]
        else:
            require_floating(name, "prediction", prediction)
            prediction = jnp.asarray(prediction)
            if not prediction.ndim or not prediction.shape[-1]:
                raise BlockValueError(
                    name,
                    f"prediction has shape {prediction.shape}, needs logits (B..., vocabulary)",
                )
            batch = prediction.shape[:-1]
        labels = as_array(name, "labels", labels)
        if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != batch:
            raise BlockTypeError(
                name,
                f"labels are {labels.dtype} of shape {labels.shape}, needs integers of shape "
                f"{batch}, one for each token",
            )
        if not weights:
            return prediction, labels, None
        (own,) = (as_array(name, "weights", a) for a in weights)
        if own.shape != batch:
            raise BlockValueError(
                name, f"weights have shape {own.shape}, needs one number for each token, {batch}"
            )
        return prediction, labels, own

    def forward(params: Params, x: Value, key: Key = None) -> tuple[jax.Array, Residuals]:
        prediction, labels, weights = inputs(x)
        is_pair = isinstance(prediction, tuple)
        h = prediction[0] if is_pair else prediction
        vocabulary, wide = (
            prediction[-1].shape[0] if is_pair else h.shape[-1],
            compute_dtype(h.dtype),
        )
        labels = labels.astype(jnp.int32) if labels.dtype.itemsize < 4 else labels
        y = jnp.where((labels >= 0) & (labels < vocabulary), labels, vocabulary).astype(jnp.int32)
        share = jnp.ones(labels.shape, wide) if weights is None else weights.astype(wide)
        if ignore_label is not None:
            ignored = labels == ignore_label
            share, y = jnp.where(ignored, 0, share), jnp.where(ignored, 0, y)
        total = jnp.sum(share)
        total = jnp.where(total == 0, 1, total)
        if is_pair:
            h, w = prediction
            rows = h.reshape(-1, h.shape[-1]), w.astype(h.dtype), y.reshape(-1), share.reshape(-1)
            losses, dh, dw = by_platform(
                *rows,
                cuda=functools.partial(over_tokens, entries=ENTRIES_ON_GPUS),
                default=functools.partial(over_tokens, entries=ENTRIES),
            )
            losses = losses.reshape(share.shape)
            kept: Residuals = {"pair": (dh.reshape(h.shape), dw, Shape.of(w))}
        else:
            losses, _ = of_rows(h.astype(wide), y, slopes=False)
            kept = {"logits": (h, y, share)}
        value = jnp.sum(jnp.where(share == 0, 0, share * losses)) / total
        weighing = None
        if weights is not None:
            off = jnp.where(y == vocabulary, jnp.nan, losses) - value
            if ignore_label is not None:
                off = jnp.where(labels == ignore_label, 0, off)
            weighing = (off, Shape.of(weights)) if is_floating(weights) else (None, None)
        return value, (kept, total, weighing)

    def backward(params: Params, residuals: Residuals, dy: jax.Array) -> tuple[Params, Value]:
        # forward: E = sum(share l) / total, so dE/dl = share / total: what was computed with the
        # value, times dy / total. And dE/dshare = (l - E) / total.
        kept, total, weighing = residuals
        by = as_cotangent(name, dy, ()).astype(total.dtype) / total
        if "pair" in kept:
            dh, dw, like = kept["pair"]
            dh = (by * dh.astype(by.dtype)).astype(dh.dtype)
            prediction: Value = dh, (by * dw).astype(like.dtype)
        else:
            z, y, share = kept["logits"]
            dz, share = of_rows(z.astype(total.dtype), y)[1], (by * share)[..., None]
            prediction = jnp.where(share == 0, 0, share * dz).astype(z.dtype)
        if weighing is None:
            return {}, (prediction, None)
        off, like = weighing
        return {}, (prediction, None, None if off is None else (by * off).astype(like.dtype))

    kind = Kind(name, (ignore_label, label_smoothing, z_loss))
    rules = Rules(validate=functools.partial(_labels_in_range, name, ignore_label))
    return elementary(forward, backward, name, kind, rules)


def _labels_in_range(name: str, ignore_label: int | None, x: Value) -> None:
    prediction, labels = x[0], np.asarray(x[1])
    is_pair = isinstance(prediction, (tuple, list))
    vocabulary = prediction[1].shape[0] if is_pair else prediction.shape[-1]
    labels = labels if ignore_label is None else labels[labels != ignore_label]
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    if low < 0 or high >= vocabulary:
        raise BlockValueError(
            name,
            f"labels go from {low} to {high}; a vocabulary of {vocabulary} needs labels from 0 to "
            f"{vocabulary - 1}: for tokens that do not count give ignore_label",
        )
