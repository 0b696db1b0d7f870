"""Compiled programs: what they refuse before JAX does, and where their arrays lie."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.arguments import require_call
from fnn.block import Block, BlockTypeError, Key, Params, Value
from fnn.pytrees import require_held
from fnn.refusals import described, require_no_model
from fnn.training.arrays import pick
from fnn.training.exporting import register_namedtuples
from fnn.training.layout import Layout

Step = Callable[..., tuple[Params, Any, jax.Array]]


def compiled(name: str, f: Callable[..., Any], trees: int, **options: Any) -> Callable[..., Any]:
    """``jax.jit(f)``, which refuses integers that JAX would wrap before f sees them.

    ``trees``: how many arguments come before the data.
    """
    program, names = jax.jit(f, **options), list(inspect.signature(f).parameters)

    @functools.wraps(f)
    def call(*args: Any, **kwargs: Any) -> Any:
        require_held(name, dict(zip(names[trees:], args[trees:], strict=False)) | kwargs)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((args, kwargs))):
            register_namedtuples((args, kwargs))  # as a part of a program that may be exported
        try:
            return program(*args, **kwargs)
        except OverflowError:  # an integer among the parameters that no array holds
            require_call(name, f, args, kwargs)
            require_held(name, dict(zip(names, args, strict=False)))
            raise
        except TypeError:
            require_call(name, f, args, kwargs)
            require_no_model(name, args[0])
            raise
        except ValueError:
            require_one_mesh(name, dict(zip(names, args, strict=False)))
            raise

    def trace(*args: Any, **kwargs: Any) -> jax.stages.Traced:
        register_namedtuples((args, kwargs))
        return program.trace(*args, **kwargs)

    # jax.stages.Wrapped: what jax.export and ahead-of-time compilation need.
    call.lower, call.trace = program.lower, trace  # type: ignore[attr-defined]
    return call


def require_one_mesh(name: str, arguments: dict[str, Any]) -> None:
    """Refuses arrays that lie on different devices."""
    found: dict[Any, str] = {}
    for what, tree in arguments.items():
        for leaf in jax.tree.leaves(tree):
            if isinstance(leaf, jax.Array) and leaf.committed:
                found.setdefault(frozenset(leaf.sharding.device_set), what)
    if len(found) > 1:
        (here, first), (there, second), *_ = found.items()
        raise ValueError(
            f"{name}: {first} lie on {len(here)} devices, {second} on {len(there)}; give "
            "sharding=, or put them on one mesh, with jax.device_put(params, NamedSharding(mesh, "
            "PartitionSpec()))"
        )


def distinct(tree: Any) -> Any:
    """Copies arrays that occur again: the memory of each can be donated once.

    A state may hold the parameters themselves, as that of ``optax.lbfgs`` does at first.
    """
    seen: set[int] = set()

    def copied(a: Any) -> Any:
        again = id(a) in seen
        seen.add(id(a))
        return jnp.copy(a) if again else a

    return jax.tree.map(copied, tree)


def count(what: str, examples: Any) -> int:
    """The number of examples; refused where arrays disagree, or are the numbers of a list."""
    shapes = [jnp.shape(a) for a in jax.tree.leaves(examples)]
    sizes = {shape[:1] for shape in shapes}
    if len(sizes) != 1 or () in sizes:
        got = ", ".join(map(str, shapes[:4])) + (", ..." if len(shapes) > 4 else "")
        raise ValueError(
            f"{what} need arrays with a first axis of examples, all of one length, got shapes "
            f"{got or 'of no array'}; numpy.asarray(...) makes one array of a list"
        )
    return shapes[0][0]


def require_order(order: Any) -> None:
    dtype = getattr(order, "dtype", np.dtype(object))
    if not jnp.issubdtype(dtype, jnp.integer) or order.ndim != 1:
        raise BlockTypeError(
            "make_epoch", f"order is {described(order)}, needs integers (n,): numpy.arange(n)"
        )


# ---- on several devices ------------------------------------------------------------------------


def step_on(layout: Layout, step: Step, donate: bool) -> Step:
    """A compiled step whose batch is split over the devices; it has to divide."""
    program = _keeping(layout, step, **({"donate_argnums": (0, 1)} if donate else {}))

    @functools.wraps(step)
    def call(
        params: Params, state: Any, x: Value, target: Value, key: Key = None, weights: Any = None
    ) -> Any:
        layout.require_even("the number of examples", count(f"{layout.name}: x", (x, target)))
        layout.holds((x, target, weights))
        data = layout.spread((x, target, weights))
        with layout.context():
            params, state = layout.placed((params, state))
            held = distinct((params, state)) if donate else (params, state)
            new = program(*held)(*held, *data[:2], layout.placed(key, "key"), data[2])
        return layout.back(new)

    return _with_lower(call, layout, program)


def epoch_on(layout: Layout, epoch: Step, batch_size: int) -> Step:
    """A compiled epoch in which each device draws from its own examples.

    Those on the host are sent as the order has them: to each device its part of each batch.
    """
    program = _keeping(layout, epoch)

    @functools.wraps(epoch)
    def call(
        params: Params, state: Any, x: Value, target: Value, order: Any, key: Key = None,
        first: Any = 0,
    ) -> Any:  # fmt: skip
        n = count("make_epoch: x and target", (x, target))
        require_order(order)
        order = np.asarray(order)
        if layout.holds((x, target)):
            layout.require_own(order, n, batch_size)
            x, target = layout.spread((x, target))
        else:
            rows, order = layout.shares(order, batch_size)
            x, target = layout.split(pick(jax.tree.map(np.asarray, (x, target)), rows))
        with layout.context():
            params, state = layout.placed((params, state))
            key = layout.placed(key, "key")
            new = program(params, state)(params, state, x, target, order, key, first)
        return layout.back(new)

    return _with_lower(call, layout, program)


def _with_lower(call: Step, layout: Layout, program: Callable[..., Any]) -> Step:
    """With ``lower``, as compiled functions have it, for arguments that lie on the mesh already."""

    def lower(params: Params, state: Any, *data: Any) -> Any:
        with layout.context():
            return program(params, state).lower(params, state, *data)

    call.lower = lower  # type: ignore[attr-defined]
    return call


def _keeping(layout: Layout, f: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """For parameters and a state: f compiled so that the new ones lie as these do."""

    @functools.lru_cache(maxsize=8)
    def program(tree: Any, shardings: Any) -> Any:
        outputs = (*tree.unflatten(shardings), layout.whole)
        return compiled(layout.name, f, trees=2, out_shardings=outputs, **options)

    def of(params: Params, state: Any) -> Any:
        leaves, tree = jax.tree.flatten((params, state))
        return program(tree, tuple(leaf.sharding for leaf in leaves))

    return of


def predict_on(layout: Layout, predict: Callable[..., Value]) -> Callable[[Params, Value], Value]:
    """Compiled predictions, split as x is.

    ``predict(params, x, parts)``: with x in that many parts that lie on different devices.
    """

    def first(params: Params, x: Value, n: int) -> Value:
        y = predict(params, x, layout.parts)
        even = n % layout.parts == 0 and jax.process_count() == 1
        lies = layout.examples if even else layout.whole
        return jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a[:n], lies), y)

    program = jax.jit(first, static_argnums=2)

    def call(params: Params, x: Value) -> Value:
        n = count("make_predict: the parts of x", x)
        layout.holds(x)
        with layout.context():
            y = program(layout.placed(params), layout.spread(x), n)
        return layout.back(y)

    return call


def loss_on(layout: Layout | None, loss: Block) -> Callable[[Value, Value], jax.Array]:
    """``value(y, target)``: the loss of predictions, compiled."""
    if layout is None:
        return jax.jit(lambda y, t: loss.forward({}, (y, t))[0])

    def first(y: Value, t: Value, n: int) -> jax.Array:
        return loss.forward({}, layout.first((y, t), n))[0]

    program = jax.jit(first, static_argnums=2, out_shardings=layout.whole)

    def value(y: Value, target: Value) -> jax.Array:
        n = count(f"{layout.name}: target", target)
        with layout.context():
            return program(*layout.spread((y, target)), n)

    return value
