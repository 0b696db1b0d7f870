"""A language model goes on with what it wrote, one id at a time, without reading all of it again.

In causal attention a place reads the keys and values of those before it, which do not depend on
what comes after: they are kept (the "cache"), and a new id costs one place in place of all. The
network needs nothing for that. Its blocks are walked as the executor walks them, and only three
kinds are run in another way: positions are told which place it is, attention adds its keys and
values to those that were kept, and a recurrent block goes on from the state that was kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fnn.arguments import Count, NonNegative, RandomKey, checked
from fnn.block import Block, BlockTypeError, BlockValueError, Params, Value, located, unwrapped
from fnn.blocks.attention import dot_product_attention
from fnn.executor import check_params, inference, is_network
from fnn.refusals import described, require_array

Cache = Mapping[str, Any]  # by node: keys and values of attention, or the cache inside
_PLACED = ("rotary", "position_embedding")


@checked
def generate(
    net: Block, params: Any, ids: Any, new: Count, key: RandomKey, *, temperature: NonNegative = 1.0
) -> jax.Array:
    """The ids, and ``new`` more that the network draws one after another.

    Each is drawn from softmax(logits / temperature) of the last place. It is traceable: under
    ``jax.jit`` it is one program, with one ``lax.scan`` over the new ids.

    Args:
      net: a network from ids (B..., T) to logits (B..., T, V): :func:`~fnn.models.transformer`, or
        one of your own. Its blocks keep places apart, except for causal attention to itself
        and :func:`~fnn.recurrent` ones.
      params: its parameters.
      ids: integers (B, T), the beginning; T is 1 or more.
      new: how many more.
      key: for the draws.
      temperature: below 1 for likelier ids; 0 for the likeliest always.

    Returns:
      Integers (B, T + new).

    Raises:
      BlockTypeError: ids are not integers of (B, T).
      BlockValueError: more than the network has positions for, or attention that is not causal.

    >>> import fnn, jax, jax.numpy as jnp
    >>> net = fnn.models.microgpt()
    >>> ids = jnp.zeros((2, 1), int)
    >>> params = net.init(jax.random.key(0), ids)
    >>> write = jax.jit(lambda params, key: fnn.models.generate(net, params, ids, 9, key))
    >>> write(params, jax.random.key(1)).shape
    (2, 10)
    """
    name = "generate"
    require_array(name, "ids", ids)
    if not jnp.issubdtype(ids.dtype, jnp.integer) or len(ids.shape) != 2 or not ids.shape[1]:
        raise BlockTypeError(name, f"ids are {described(ids)}, needs integers (B, T), T at least 1")
    net, ids = inference(net), jnp.asarray(ids)
    length = ids.shape[1] + new
    for block in _blocks(net):
        maker, args = block.kind.maker, block.kind.args
        if maker == "position_embedding" and length > args[0]:
            raise BlockValueError(
                name, f"{ids.shape[1]} ids and {new} more are {length}, needs at most {args[0]}, "
                "the network's positions: give fewer, or the last of them",
            )  # fmt: skip
        if (maker, args[:1]) in (("dot_product_attention", (False,)), ("recurrent", (True,))):
            raise BlockValueError(
                name, f"the network has {block.kind.call}, needs blocks that read what was before "
                "alone: attention with causal=True, recurrent without reverse",
            )  # fmt: skip

    def draw(logits: jax.Array, key: jax.Array) -> jax.Array:
        if temperature == 0:
            return jnp.argmax(logits, -1).astype(ids.dtype)
        return jax.random.categorical(key, logits / temperature).astype(ids.dtype)

    def read(ids: jax.Array, place: Any, cache: Cache) -> tuple[jax.Array, Cache]:
        logits, cache = cached(net, params, ids, cache, place, length)
        return logits[:, -1], cache

    def body(carry: Any, step: Any) -> tuple[Any, jax.Array]:
        (last, cache), (place, key) = carry, step
        logits, cache = read(last[:, None], place, cache)
        following = draw(logits, key)
        return (following, cache), following

    first, *keys = jax.random.split(key, new)
    logits, cache = read(ids, 0, {})
    following = draw(logits, first)
    written = [ids, following[:, None]]
    if keys:
        places = jnp.arange(ids.shape[1], length - 1, dtype=jnp.int32)
        _, rest = lax.scan(body, (following, cache), (places, jnp.stack(keys)))
        written.append(rest.T)
    return jnp.concatenate(written, 1)


def cached(
    block: Block, params: Params, x: Value, cache: Cache, place: Any, length: int
) -> tuple[Value, Cache]:
    """What a block makes of some places, the first of them number ``place``; those before it were
    given before.

    ``cache``: {} at first, and then what the last call returned. ``length``: of the whole sequence.
    """
    block = unwrapped(block)
    maker = block.kind.maker
    if maker == "dot_product_attention":
        return _attend(block, x, cache, place, length)
    if maker in _PLACED:
        places = jnp.broadcast_to(place + jnp.arange(x.shape[1], dtype=jnp.int32), x.shape[:2])
        return block.forward(params, (x, places))[0], {}
    if maker == "recurrent":
        y, state = block.forward(params, (x, cache.get("state")))[0]
        return y, {"state": state}
    if maker == "repeat":
        (inner,) = block.kind.of

        def layer(x: Value, one: tuple[Params, Cache]) -> tuple[Value, Cache]:
            return cached(inner, one[0], x, one[1], place, length)

        return lax.scan(layer, x, (params, cache), length=block.kind.args[0])
    if block.graph is None or not is_network(block):
        return block.forward(params, x)[0], {}
    whole = block.graph
    check_params(whole, params, block.name)
    values = dict(zip(whole.inputs, (x,) if len(whole.inputs) == 1 else x, strict=True))
    kept = {}
    for node in whole.nodes:
        with located(node.name):
            inputs = tuple(values[name] for name in node.inputs)
            values[node.name], kept[node.name] = cached(
                node.block, params.get(node.params_of, {}),
                inputs[0] if len(inputs) == 1 else inputs, cache.get(node.name, {}), place, length,
            )  # fmt: skip
    outputs = tuple(values[name] for name in whole.outputs)
    return outputs[0] if len(outputs) == 1 else outputs, kept


def _attend(
    block: Block, x: Value, cache: Cache, place: Any, length: int
) -> tuple[jax.Array, Cache]:
    """Causal attention of some queries to their own keys and to those that were kept."""
    q, *own = x[:3]
    kept = {}
    for name, a in zip(("key", "value"), own, strict=True):
        shape = (a.shape[0], length, *a.shape[2:])
        before = cache[name] if cache else jnp.zeros(shape, a.dtype)
        kept[name] = lax.dynamic_update_slice_in_dim(before, a, place, 1)
    here = place + jnp.arange(q.shape[1], dtype=jnp.int32)
    looks = jnp.arange(length, dtype=jnp.int32)[None, :] <= here[:, None]
    reads = dot_product_attention(scale=block.kind.args[1])
    return reads.forward({}, (q, kept["key"], kept["value"], looks))[0], kept


def _blocks(block: Block) -> Iterator[Block]:
    yield block
    nodes = block.graph.nodes if block.graph is not None else ()
    for inner in (*block.kind.of, *(node.block for node in nodes)):
        yield from _blocks(inner)
