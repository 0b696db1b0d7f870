"""Less memory for more time: what is cheap to compute again going back is not kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from fnn.arguments import checked
from fnn.arrays import is_floating
from fnn.block import Backward, Block, Forward, Key, Kind, Params, Residuals, Rules, Value
from fnn.compiling import by_platform, certain
from fnn.executor import inference, is_network, mapped, rebuilt
from fnn.refusals import as_cotangent, require_key, require_numbers

# By maker, the blocks whose work is products: a network's time is theirs.
PRODUCTS = frozenset({
    "linear", "conv", "conv_transpose", "unembedding", "dot_product_attention", "recurrent",
})  # fmt: skip

Kept = list[tuple[Value, Residuals]]  # of each product, in the order of forward


@checked
def rematerialize(block: Block, *, keep: Literal["input", "products"] = "input") -> Block:
    """The same function with less memory: runs forward again going back.

    Chen et al. 2016, arXiv 1604.06174.

    Args:
      block: any block.
      keep: "input" keeps that alone, and runs all of forward again. "products" keeps besides what
        linear layers, convolutions, attention and recurrent blocks give, so that only what is cheap
        is computed again: norms, nonlinearities, sums. It looks for them in graphs, and runs again
        whole what is inside of another block.

    Returns:
      A block with the same parameters. Residuals: ``x`` and the key, and the output and residuals
      of each product, in place of all inside.

    >>> import fnn, jax.numpy as jnp
    >>> y, residuals = fnn.rematerialize(fnn.serial(fnn.exp(), fnn.square())).forward(
    ...     {}, jnp.ones(3))
    >>> residuals
    (Array([1., 1., 1.], dtype=float32), None, [])
    """

    def forward(params: Params, x: Value, key: Key = None) -> tuple[Value, Residuals]:
        if key is not None:
            require_key(block.name, key)
        again = None if key is None else jax.random.clone(key)  # used again on purpose
        kept: Kept = []
        watched = block if keep == "input" else _with_products(block, lambda b: _kept_by(b, kept))
        return watched.forward(params, x, key)[0], (x, again, kept)

    def of_all(params: Params, residuals: Residuals) -> Residuals:
        """The residuals of forward, run again."""
        x, key, kept = residuals
        given = iter(kept)
        again = block if keep == "input" else _with_products(block, lambda _: _given(given))
        return again.forward(params, x, key)[1]

    def backward(params: Params, residuals: Residuals, dy: Value) -> tuple[Params, Value]:
        def again(params: Params, residuals: Residuals, dy: Value) -> tuple[Params, Value]:
            return block.backward(params, of_all(params, residuals), dy)

        require_numbers(block.name, "params", params)
        dy = jax.tree.map(lambda d: as_cotangent(block.name, d), dy)
        return _unmerged(again, params, residuals, dy)

    statistics, factors = block.rules.update_statistics, block.rules.factors

    def update_statistics(params: Params, residuals: Residuals) -> Params:
        assert statistics is not None
        return statistics(params, of_all(params, residuals))

    def factors_again(params: Params, residuals: Residuals, dy: Value) -> tuple[Value, Value]:
        assert factors is not None
        return factors(params, of_all(params, residuals), dy)

    rules = Rules(
        inference=lambda: rematerialize(inference(block), keep=keep),
        validate=block.rules.validate,
        update_statistics=update_statistics if statistics else None,
        subgradient=block.rules.subgradient,
        factors=factors_again if factors else None,
    )
    kind = Kind("rematerialize", () if keep == "input" else (keep,), (block,))
    return Block(block.init, forward, backward, f"rematerialize_{block.name}", kind, rules=rules)


def _with_products(block: Block, forward: Callable[[Block], Forward]) -> Block:
    """The block with another forward of each product in its graph."""
    if block.kind.maker in PRODUCTS:
        return block._replace(forward=forward(block))
    if not is_network(block):
        return block
    return rebuilt(block, mapped(block, lambda _, inner: _with_products(inner, forward)))


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Leaf:
    """Among the residuals that are kept, in place of an array that is there again going back."""

    number: int  # of the leaves of (x, y)


def _kept_by(product: Block, kept: Kept) -> Forward:
    """Its forward, which adds to ``kept`` what is not computed again."""

    def forward(params: Params, x: Value, key: Key = None) -> tuple[Value, Residuals]:
        y, residuals = product.forward(params, x, key)
        numbers = {id(leaf): _Leaf(i) for i, leaf in enumerate(jax.tree.leaves((x, y)))}
        kept.append((y, jax.tree.map(lambda leaf: numbers.get(id(leaf), leaf), residuals)))
        return y, residuals

    return forward


def _given(kept: Any) -> Forward:
    """In place of a product's forward: what it gave, with its x computed again."""

    def forward(params: Params, x: Value, key: Key = None) -> tuple[Value, Residuals]:
        y, residuals = next(kept)
        leaves = jax.tree.leaves((x, y))
        return y, jax.tree.map(
            lambda leaf: leaves[leaf.number] if isinstance(leaf, _Leaf) else leaf,
            residuals, is_leaf=lambda leaf: isinstance(leaf, _Leaf),
        )  # fmt: skip

    return forward


def _unmerged(
    again: Backward, params: Params, residuals: Residuals, dy: Value
) -> tuple[Params, Value]:
    """``again(params, residuals, dy)``, not merged by the compiler with the first forward.

    XLA would see the same forward twice, run it once, and keep everything in memory after all. A
    barrier that ties the arguments to dy prevents that on GPU and TPU. XLA on CPU removes barriers
    before it merges (so ``jax.checkpoint`` saves little there), but does not merge across
    a conditional: one branch is ``again``, the other is never taken.
    """
    traced = [
        leaf
        for leaf in jax.tree.leaves((params, dy, residuals))
        if isinstance(leaf, jax.core.Tracer)
    ]
    if not traced:
        return again(params, residuals, dy)  # not compiled, so nothing is merged
    # A parameter rather than dy, which several devices may share: they would have to agree.
    first = next((leaf for leaf in traced if jnp.size(leaf) and is_floating(leaf)), None)
    if first is None:
        return again(params, residuals, dy)

    # In one place only, whatever the platform: in two the program would double at every nesting.
    once, arguments = jax.jit(again), lax.optimization_barrier((params, residuals, dy))
    like = once.eval_shape(*arguments)  # also how the results are split, and under shard_map vary

    def never(*_: Value) -> tuple[Params, Value]:
        return jax.tree.map(jnp.zeros_like, like)

    # XLA drops a condition that is True, which leaves the barrier.
    known = by_platform(first, cpu=certain, default=lambda a: jnp.ones_like(certain(a)))
    return lax.cond(known, once, never, *arguments)
