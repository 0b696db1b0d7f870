"""Which of the blocks inside a wrong network are wrong?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from fnn.block import Block
from fnn.check.report import Problem, Result
from fnn.check.rule import Sample
from fnn.executor import is_network
from fnn.introspect.watch import observe, watch


class Inner(NamedTuple):
    """A block as it ran inside a network: where, and with what."""

    path: str
    block: Block
    sample: Sample


def blame(
    block: Block, sample: Sample, check: Callable[[Inner], Sequence[Result]]
) -> tuple[Problem, ...]:
    """The problems of the blocks inside that are wrong on their own, by path.

    Each is checked at the inputs and parameters that it has in the network. A block that
    occurs again with inputs of the same shape is checked once.
    """
    if block.graph is None:
        return ()
    if not is_network(block):
        words = "has a forward or backward of its own in place of its graph's"
        return (Problem(block.name, words),)
    inner = inside(block, sample)
    problems: dict[Problem, None] = {}
    checked: set[Any] = set()
    for part in inner:
        shapes = jax.tree.map(lambda v: (v.shape, str(v.dtype)), part.sample)
        kind = (id(part.block.backward), str(shapes))
        if kind in checked:
            continue
        checked.add(kind)
        for problem in (p for result in check(part) for p in result.problems if not p.note):
            leaf = f"in {part.path} ({part.block.name}), {problem.leaf}"
            problems.setdefault(problem._replace(leaf=leaf))
    if not problems:
        words = f"each of the {len(inner)} blocks inside is right on its own at the inputs it has"
        return (Problem(block.name, words),)
    return tuple(problems)


def inside(block: Block, sample: Sample) -> list[Inner]:
    """Every block in the network that is no network itself, in the order in which they run."""
    ran: list[Inner] = []

    def watched(path: str, inner: Block) -> Block:
        def note(params: Any, x: Any, key: Any, **_: Any) -> None:
            ran.append(Inner(path, inner, Sample(params, x, key)))

        return inner if is_network(inner) else observe(inner, note)

    watch(block, watched).forward(*sample)
    return [part._replace(sample=jax.device_get(part.sample)) for part in ran]
