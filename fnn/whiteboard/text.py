"""A trace in words: forward, then backward, and what a node's panel says."""

from __future__ import annotations

import math
from collections.abc import Iterator

import jax

from fnn.introspect.text import clean, kind_of, readable_bytes
from fnn.whiteboard.array_text import relative
from fnn.whiteboard.board import Board, board
from fnn.whiteboard.chain_rule import (
    chains,
    fork_sum,
    in_words,
    leaves_of,
    products,
    summands_of,
    value_of,
)
from fnn.whiteboard.formulas import note_of
from fnn.whiteboard.numbers import marked, plain
from fnn.whiteboard.recording import Recording
from fnn.whiteboard.symbols import is_number


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
    """All about a node: (kind of line, text). Kinds: head, value, gradient, chain, kept, check.

    Numbers in a text are ``marked``.
    """
    network, f = b.parents[node.path], b.objective
    y, wires, reads = b.called(network, node.name), network.values, dict.fromkeys(node.reads)
    kind = f" ({clean(node.kind, 60)})" if node.kind != node.name else ""
    yield "head", clean(node.path, 200) + kind
    yield "value", value_of(b, node)
    id = b.ids[node.path]
    for name in reads:
        value = in_words(wires[name][0], reference=b.wire("v", network, name))
        yield "value", f"{b.called(network, name)} = {value}"
    for leaf, value in () if node.nodes else leaves_of(node.params):
        yield "value", f"{clean(leaf, 40)} = {in_words(value, reference=f'p{id}.{leaf}')}"
    yield "value", f"{y} = {in_words(node.y, reference=b.wire('v', network, node.name))}"
    if note := note_of(node.block):
        yield "value", note
    upstream = "nothing that has a gradient depends on it"
    if node.dy is not None:
        dy = in_words(node.dy, True, b.wire("d", network, node.name))
        upstream = f"upstream d{f}/d{y} = {dy}{_fork(b, network, node)}"
    yield "gradient", upstream
    for step in _steps(b, node):
        yield "gradient", step
    owner = node.params_of
    if sum(other.params_of == owner for other in network.nodes) > 1 and owner in network.params:
        shared = f"shared parameters of {clean(owner, 40)}: the sum of all uses is"
        for leaf, d in leaves_of(network.dparams[owner]):
            yield "gradient", f"{shared} d{f}/d{clean(leaf, 40)} = {in_words(d, True)}"
    known = [
        name for name, d in zip(node.reads, node.dxs, strict=True)
        if d is not None and not is_number(name)
    ]  # fmt: skip
    ways = [way for name in dict.fromkeys(known) for way in chains(b, network, name)]
    for product in products(b, node):
        if product.is_param and product.gradient is not None:
            param = (product.of, product.local, product.factors[1])
            ways += chains(b, network, node.name, param)
    for way in ways:
        yield "chain", way
    yield "kept", kept(node)
    yield "check", verdict(node)


def _steps(b: Board, node: Recording) -> Iterator[str]:
    for product in products(b, node):
        if product.gradient is None:
            yield f"{product.of}: {'not computed' if product.is_param else 'has no gradient'}"
            continue
        rule = f"   because {product.rule}" if product.rule else ""
        if product.whole:
            numbers = marked(product.whole, product.whole, product.recipe)
            yield f"{product.equation} = {numbers}{rule}"
        else:
            down = in_words(product.gradient, True, product.reference)
            yield f"d{b.objective}/d{product.of} = {down}{rule}"


def _fork(b: Board, network: Recording, node: Recording) -> str:
    total = fork_sum(b, network, node.name)
    if " = " in total:
        terms = [reference for _, _, reference in summands_of(b, network, node.name)]
        total = marked(total, total, ["fork", terms, b.wire("d", network, node.name)])
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
        lines.append(f"  {_where(b, node)}{value}, {kept(node)}{note}")
    lines.append("backward")
    for node in reversed(nodes):
        network = b.parents[node.path]
        gradient = f"d{f}/d{b.called(network, node.name)} = {in_words(node.dy, True)}"
        fork = _fork(b, network, node)
        lines.append(f"  {_where(b, node)}{gradient}{fork}  {verdict(node)}")
        lines += [f"    {line}" for line in _steps(b, node)]
    for x in whole.inputs:
        if total := fork_sum(b, whole, x):
            lines.append(f"  {clean(x, 40)} forks: {total}")
    return plain("\n".join(lines))


def _where(b: Board, node: Recording) -> str:
    """The path, as far as the value's symbol does not say it."""
    symbol = b.called(b.parents[node.path], node.name)
    if symbol not in (node.name, "E"):
        return f"{clean(node.path, 60)}: "
    above = node.path.rpartition("/")[0]
    return f"{clean(above, 60)}/ " if above else ""
