"""A trace in words: forward, then backward, and what a node's panel says."""

from __future__ import annotations

import math
from collections.abc import Iterator

import jax

from fnn.introspect.text import clean, kind_of, readable_bytes
from fnn.whiteboard.array_text import relative
from fnn.whiteboard.board import Board, board
from fnn.whiteboard.chain_rule import chains, fork_sum, in_words, leaves_of, products, value_of
from fnn.whiteboard.formulas import note_of
from fnn.whiteboard.recording import Recording


def verdict(trace: Recording) -> str:
    """A tick or a cross against autodiff, and the relative error."""
    error = trace.error
    if error is None:
        return "not compared with jax.vjp"
    if math.isnan(error):
        return "not comparable: jax.vjp's is NaN"
    mark = "✓ matches" if trace.right else "✗ differs from"
    return f"{mark} jax.vjp (relative error {relative(error)})"


def headline(b: Board, finished: bool = True) -> str:
    """What is traced, and, once it has run, whether it is right."""
    whole = b.trace
    net = whole.nodes[0] if whole.objective == "E" and len(whole.nodes) == 2 else whole
    name, result = clean(net.kind, 60) or "block", f", {verdict(whole)}" if finished else ""
    return f"{name}: gradients of {b.objective}{result}"


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
    network, f = b.parents[node.path], b.objective
    y, wires, reads = b.called(network, node.name), network.values, dict.fromkeys(node.reads)
    kind = f" ({clean(node.kind, 60)})" if node.kind != node.name else ""
    yield "head", clean(node.path, 200) + kind
    yield "value", value_of(b, node)
    for name in reads:
        yield "value", f"{b.called(network, name)} = {in_words(wires[name][0])}"
    for leaf, value in () if node.nodes else leaves_of(node.params):
        yield "value", f"{clean(leaf, 40)} = {in_words(value)}"
    yield "value", f"{y} = {in_words(node.y)}"
    if note := note_of(node.block):
        yield "value", note
    yield "kept", kept(node)
    upstream = "nothing that has a gradient depends on it"
    if node.dy is not None:
        upstream = f"upstream d{f}/d{y} = {in_words(node.dy, True)}{_fork(b, network, node)}"
    yield "gradient", upstream
    for step in _steps(b, node):
        yield "gradient", step
    owner = node.params_of
    if sum(other.params_of == owner for other in network.nodes) > 1 and owner in network.params:
        shared = f"shared parameters of {clean(owner, 40)}: the sum of all uses is"
        for leaf, d in leaves_of(network.dparams[owner]):
            yield "gradient", f"{shared} d{f}/d{clean(leaf, 40)} = {in_words(d, True)}"
    ways = [way for name in reads for way in chains(b, network, name)]
    for product in products(b, node):
        if product.is_param and product.gradient is not None:
            ways += chains(b, network, node.name, (product.of, product.local))
    for way in ways:
        yield "chain", way
    yield "check", verdict(node)


def _steps(b: Board, node: Recording) -> Iterator[str]:
    for product in products(b, node):
        if product.gradient is None:
            yield f"{product.of}: {'not computed' if product.is_param else 'has no gradient'}"
            continue
        rule = f"   because {product.rule}" if product.rule else ""
        down = f"d{b.objective}/d{product.of} = {in_words(product.gradient, True)}"
        yield (f"{product.equation} = {product.whole}" if product.whole else down) + rule


def _fork(b: Board, network: Recording, node: Recording) -> str:
    total = fork_sum(b, network, node.name)
    return f" (at the fork: {total})" if total else ""


def text(trace: Recording) -> str:
    """Everything in words: every node going forward, then every node going back."""
    b = board(trace, True)
    whole, nodes, f = b.trace, b.visible(), b.objective
    lines = [headline(b), *([str(b.non_finite)] if b.non_finite else []), "forward"]
    lines += [f"  {clean(x, 40)} = {in_words(whole.values[x][0])}" for x in whole.inputs]
    for node in nodes:
        note = f"; {note_of(node.block)}" if note_of(node.block) else ""
        value = f"{value_of(b, node)} = {in_words(node.y)}"
        lines.append(f"  {_where(node)}{value}, {kept(node)}{note}")
    lines.append("backward")
    for node in reversed(nodes):
        network = b.parents[node.path]
        gradient = f"d{f}/d{b.called(network, node.name)} = {in_words(node.dy, True)}"
        fork = _fork(b, network, node)
        lines.append(f"  {_where(node)}{gradient}{fork}  {verdict(node)}")
        lines += [f"    {line}" for line in _steps(b, node)]
    for x in whole.inputs:
        if total := fork_sum(b, whole, x):
            lines.append(f"  {clean(x, 40)} forks: {total}")
    return "\n".join(lines)


def _where(node: Recording) -> str:
    above = node.path.rpartition("/")[0]
    return f"{clean(above, 60)}/ " if above else ""
