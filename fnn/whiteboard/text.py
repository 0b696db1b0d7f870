"""A trace in words: forward, then backward, and what a node's panel says."""

from __future__ import annotations

import math
from collections.abc import Iterator

import jax

from fnn.introspect.text import clean, kind_of, readable_bytes
from fnn.whiteboard.board import Board, board
from fnn.whiteboard.chain_rule import (
    chains,
    fork_sum,
    in_words,
    leaves_of,
    products,
    relative,
    value_of,
)
from fnn.whiteboard.formulas import note_of
from fnn.whiteboard.recording import Recording


def verdict(trace: Recording) -> str:
    """A tick or a cross against autodiff, and the relative error."""
    if trace.error is None:
        return "not compared with jax.vjp"
    if math.isnan(trace.error):
        return "not comparable: jax.vjp's is NaN"
    return (
        f"{'✓ as' if trace.right else '✗ not'} jax.vjp's (relative error {relative(trace.error)})"
    )


def headline(b: Board, finished: bool = True) -> str:
    """What is traced, and, once it has run, whether it is right."""
    whole = b.trace
    net = whole.nodes[0] if whole.objective == "E" and len(whole.nodes) == 2 else whole
    name, f = clean(net.kind, 60) or "block", clean(whole.objective, 40)
    return f"{name}: gradients of {f}" + (f", {verdict(whole)}" if finished else "")


def kept(trace: Recording) -> str:
    """What forward kept for backward."""
    leaves = jax.tree.leaves(trace.residuals)
    if not trace.kept_bytes:
        return "keeps nothing for backward"
    what = ", ".join(map(kind_of, leaves[:4]))
    more = f" and {len(leaves) - 4} more" if len(leaves) > 4 else ""
    return f"keeps {readable_bytes(trace.kept_bytes)} for backward: {what}{more}"


def explained(b: Board, node: Recording) -> Iterator[tuple[str, str]]:
    """All about a node: (kind of line, text). Kinds: head, value, gradient, kept, chain, check."""
    network = b.parent(node)
    kind = f" ({clean(node.kind, 60)})" if node.kind != node.name else ""
    yield "head", clean(node.path, 200) + kind
    yield "value", value_of(b, node)
    wires = network.values
    for name in dict.fromkeys(node.reads):
        yield "value", f"{clean(b.called(network, name), 40)} = {in_words(wires[name][0])}"
    if not node.nodes:
        for name, leaf in leaves_of(node.params):
            yield "value", f"{clean(name, 40)} = {in_words(leaf)}"
    y = clean(b.called(network, node.name), 40)
    yield "value", f"{y} = {in_words(node.y)}"
    if note := note_of(node.block):
        yield "value", note
    yield "kept", kept(node)
    f = clean(b.trace.objective, 40)
    if node.dy is None:
        yield "gradient", "nothing that has a gradient depends on it"
    else:
        total = fork_sum(b, network, node.name)
        fork = f"  (at the fork: {total})" if total else ""
        yield "gradient", f"upstream d{f}/d{y} = {in_words(node.dy, True)}{fork}"
    for line in _steps(b, node):
        yield "gradient", line
    owner = node.params_of
    if sum(other.params_of == owner for other in network.nodes) > 1 and owner in network.params:
        for leaf, d in leaves_of(network.dparams[owner]):
            shared = f"shared parameters of {clean(owner, 40)}: the sum of all uses is"
            yield "gradient", f"{shared} d{f}/d{clean(leaf, 40)} = {in_words(d, True)}"
    for name in dict.fromkeys(node.reads):
        for line in chains(b, network, name):
            yield "chain", line
    for product in products(b, node):
        if product.is_param and product.gradient is not None:
            for line in chains(b, network, node.name, (product.of, product.local)):
                yield "chain", line
    yield "check", verdict(node)


def _steps(b: Board, node: Recording) -> Iterator[str]:
    for product in products(b, node):
        if product.gradient is None:
            why = "not computed" if product.is_param else "none: no gradient goes there"
            yield f"{product.of}: {why}"
            continue
        rule = f"   because {product.rule}" if product.rule else ""
        if product.whole:
            yield f"{product.equation} = {product.whole}{rule}"
        else:
            f, down = clean(b.trace.objective, 24), in_words(product.gradient, True)
            yield f"d{f}/d{product.of} = {down}{rule}"


def text(trace: Recording) -> str:
    """Everything in words: every node going forward, then every node going back."""
    b = board(trace, True)
    whole = b.trace
    nodes = b.visible()
    lines = [headline(b)]
    if b.non_finite:
        lines.append(str(b.non_finite))
    lines.append("forward")
    wires = whole.values
    for name in whole.inputs:
        lines.append(f"  {clean(name, 40)} = {in_words(wires[name][0])}")
    for node in nodes:
        note = note_of(node.block)
        told = f"{in_words(node.y)}, {kept(node)}" + (f"; {note}" if note else "")
        lines.append(f"  {_where(node)}{value_of(b, node)} = {told}")
    lines.append("backward")
    for node in reversed(nodes):
        network = b.parent(node)
        y, f = clean(b.called(network, node.name), 40), clean(whole.objective, 40)
        total = fork_sum(b, network, node.name)
        fork = f" (at the fork: {total})" if total else ""
        lines.append(
            f"  {_where(node)}d{f}/d{y} = {in_words(node.dy, True)}{fork}  {verdict(node)}"
        )
        lines += [f"    {line}" for line in _steps(b, node)]
    for name in whole.inputs:
        total = fork_sum(b, whole, name)
        if total:
            lines.append(f"  {clean(name, 40)} forks: {total}")
    return "\n".join(lines)


def _where(node: Recording) -> str:
    above = node.path.rpartition("/")[0]
    return f"{clean(above, 60)}/ " if above else ""
