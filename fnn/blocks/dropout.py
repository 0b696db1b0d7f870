"""Dropout: a random mask while training, the identity at inference."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fnn.arguments import Share, checked
from fnn.arrays import compute_dtype
from fnn.block import Block, BlockValueError, Key, Kind, Params, Rules
from fnn.blocks.nonlinearities import identity
from fnn.refusals import as_cotangent, elementary, require_floating


@checked
def dropout(rate: Share) -> Block:
    """Each entry becomes 0 with probability ``rate``, else x / (1 - rate), which keeps the mean.

    Srivastava et al. 2014, in the inverted form: there is nothing to scale at inference, where the
    block is the identity.

    Args:
      rate: the probability of dropping, 0 <= rate < 1 (not that of keeping).

    Returns:
      A block without parameters, for an array of any shape. Residuals: the key, not the mask:
      backward draws the same mask again.

    Raises:
      BlockValueError: no key, or a rate outside its range.
      BlockTypeError: x is not floating.

    >>> import fnn, jax, jax.numpy as jnp
    >>> y, _ = fnn.dropout(0.5).forward({}, jnp.ones(1000), jax.random.key(0))
    >>> sorted(set(y.tolist()))
    [0.0, 2.0]
    """

    def masked(key: jax.Array, x: jax.Array) -> jax.Array:
        keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
        wide = x.astype(compute_dtype(x.dtype))
        return jnp.where(keep, wide / (1 - rate), 0).astype(x.dtype)

    def forward(params: Params, x: jax.Array, key: Key = None) -> tuple[jax.Array, jax.Array]:
        require_floating("dropout", "x", x)
        if key is None:
            raise BlockValueError(
                "dropout",
                "got no key, needs a key to draw its mask: pass key=jax.random.key(0) (forward, "
                "value_and_grad and training steps all take one), or use inference(net)",
            )
        return masked(key, x), jax.random.clone(key)  # which is used again on purpose

    def backward(params: Params, key: jax.Array, dy: jax.Array) -> tuple[Params, jax.Array]:
        # forward: y = x * mask / (1 - rate), linear in x, so dx = dy * mask / (1 - rate).
        return {}, masked(key, as_cotangent("dropout", dy))

    rules = Rules(inference=identity)
    return elementary(forward, backward, "dropout", Kind("dropout", (rate,)), rules)
