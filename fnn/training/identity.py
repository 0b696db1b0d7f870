"""What a run is made of, so that a checkpoint is taken up by the run that it is of alone."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Any

import jax
import numpy as np

from fnn.backprop import backpropagate
from fnn.block import Block, Params
from fnn.refusals import warn
from fnn.training.arrays import Arrays
from fnn.training.leaves import kinds
from fnn.training.preparation import Settings
from fnn.training.run import Run, seed_of
from fnn.training.source import Rows

Facts = dict[str, Any]
SAMPLED = 1000  # examples whose values are compared


def identity(run: Run, settings: Settings, params: Params, state: Any) -> Facts:
    """What a run is made of, by name, as JSON has it. How long it trains is no part of that."""
    library = f"one of {type(run.optimizer).__module__.split('.')[0]}"  # Optax's say no more
    return {
        "the network": "\n".join(_structure(run.net)),
        "the loss": "\n".join(_structure(run.loss)),
        "loss_at_inference": "\n".join(_structure(run.loss_at_inference)),
        "the number of examples": len(run.data),
        "one example": ", ".join(kinds(run.data.like).values()),
        "examples that lie on devices": run.data.is_split,  # which gives them another order
        "the number of validation examples": _count(settings.validation),
        "batch_size": run.batch_size,
        "key": seed_of(run.key),
        "metrics": sorted(settings.metrics),
        "diagnostics": settings.diagnostics,
        "optimizer": library if " at 0x" in (own := repr(run.optimizer)) else own,
        **{f"params{name}": kind for name, kind in kinds(params).items()},
        **{f"the optimizer's state{name}": kind for name, kind in kinds(state).items()},
    }


def contents(run: Run, params: Params, state: Any) -> Facts:
    """Digests of what cannot be told in words: some examples, and what the optimiser computes."""
    program = _program(run.optimizer.update, params, state, params)
    return {"the examples": _digest(run.data), "what the optimizer computes": program}


def everything(run: Run, settings: Settings, params: Params, state: Any) -> Facts:
    """What processes that train together have to have in common."""
    x, target = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((run.batch_size, *a.shape), a.dtype), run.data.like
    )
    step = backpropagate(run.net, run.loss)
    own = {"microbatches": settings.microbatches, "steps_per_call": run.steps_per_call}
    program = _program(step, params, x, target, jax.eval_shape(lambda: jax.random.key(0)))
    digests = contents(run, params, state) | {"what the network computes": program}
    return {
        **identity(run, settings, params, state),
        **own,
        **{f"the checksum of {name}": digest for name, digest in digests.items()},
    }


def require_same(now: Facts, saved: Facts, where: object) -> None:
    """Refuses a run that is not the one that was saved."""
    for name in now | saved:
        if now.get(name) != saved.get(name):
            new, old = _difference(now.get(name), saved.get(name))
            raise ValueError(
                f"fit: {name}: got {new}, but the checkpoint in {where} is of a run with {old}; "
                "give the same again, or another folder"
            )


def warn_of_others(now: Facts, saved: Facts, where: object) -> None:
    """Warns that a run goes on as no single run would have."""
    others = [name for name in now if now[name] != saved.get(name, now[name])]
    if others:
        warn(
            f"fit: {' and '.join(others)} changed since the checkpoint in {where} was saved. "
            "Training goes on, but the result is not that of one run"
        )


def _structure(block: Block, label: str = "", depth: int = 0) -> Iterator[str]:
    """A line for each block, those inside it indented: its name, its call, what it reads."""
    yield f"{'  ' * depth}{label}{block.kind.call if block.graph is None else block.kind.maker}"
    inside = [(f"{part.name}: ", part) for part in block.kind.of]
    if block.graph is not None:
        inside = [(f"{n.name}({', '.join(n.inputs)}): ", n.block) for n in block.graph.nodes]
    for label, part in inside:
        yield from _structure(part, label, depth + 1)


def _count(data: Any) -> int:
    if data is None:
        return 0
    return len(jax.tree.leaves(data[1])[0] if isinstance(data, tuple) else data)


def _difference(new: Any, old: Any) -> tuple[str, str]:
    """Two values in words; of several lines, the first that differ."""
    if isinstance(new, str) and isinstance(old, str):
        pairs = zip_longest(new.splitlines(), old.splitlines(), fillvalue="nothing")
        new, old = next(((a.strip(), b.strip()) for a, b in pairs if a != b), (new, old))
    new, old = ("nothing" if v in (None, "") else f"{v:.200}" for v in map(_text, (new, old)))
    return new, old


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _digest(data: Any) -> int | None:
    """Of some examples; None of a source, which may give others each time."""
    data = getattr(data, "source", data)  # a memory-mapped file is one of arrays
    leaves = jax.tree.leaves((data.x, data.target)) if isinstance(data, Arrays | Rows) else []
    if not leaves or not all(getattr(a, "is_fully_addressable", True) for a in leaves):
        return None
    rows = np.linspace(0, len(data) - 1, min(len(data), SAMPLED)).astype(int)
    digest = 0
    for a in leaves:
        digest = zlib.crc32(np.ascontiguousarray(np.asarray(a)[rows]).tobytes(), digest)
    return digest


def _program(f: Callable[..., Any], *arguments: Any) -> str | None:
    """A hash of what a function computes; None where it needs other arguments, too."""

    def spec(a: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(np.shape(a), a.dtype if hasattr(a, "dtype") else np.float32)

    try:
        program = str(jax.make_jaxpr(f)(*jax.tree.map(spec, arguments)))
    except Exception:
        return None
    return hashlib.sha256(re.sub(" at 0x[0-9a-f]+", "", program).encode()).hexdigest()
