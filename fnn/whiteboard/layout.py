"""Layout: columns from left to right, with few crossings; deterministic.

Two parts. ``layered`` decides the columns (the longest path from an input) and the order in each
(barycentres: Sugiyama, Tagawa and Toda 1981) from the graph alone. ``place`` computes coordinates
from the sizes of the items, and breaks long networks into rows as text into lines; layout.js does
the same when a box is opened or the window is narrower.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

SWEEPS = 8
GAP, LANE, MARGIN, CHANNEL, NARROW = 26.0, 16.0, 26.0, 30.0, 40.0


class Wire(NamedTuple):
    """From one item to port number ``port`` of another, through waypoints in between."""

    source: str
    via: tuple[str, ...]
    target: str
    port: int


class Layers(NamedTuple):
    """Columns of keys, in order; ``wires`` between them. A waypoint is a key like any other.

    ``slots``: for each port of every item, the number of the value that enters there. Ports are in
    the order in which their wires arrive, so that these do not cross in front of the item.
    ``late``: inputs that stand beside their reader, in its row where that is possible.
    """

    columns: tuple[tuple[str, ...], ...]
    wires: tuple[Wire, ...]
    inputs: tuple[str, ...]
    slots: dict[str, tuple[int, ...]]
    late: tuple[str, ...] = ()


class Size(NamedTuple):
    """An item's width and its extent above and below its axis; where wires enter, on its left
    edge, and leave, on its right, relative to the axis."""

    width: float
    up: float
    down: float
    ports: tuple[float, ...] = (0.0,)
    out: float = 0.0


class Placed(NamedTuple):
    """``at``: the left end of every item's axis. ``paths``: the wires, in SVG's notation.
    ``size``: the size of the whole, whose top is at ``-size.up``."""

    at: dict[str, tuple[float, float]]
    paths: tuple[str, ...]
    size: Size


def layered(
    inputs: Sequence[str],
    nodes: Sequence[tuple[str, Sequence[str]]],
    ends: Sequence[Sequence[str]],
    late: Collection[str] = (),
) -> Layers:
    """The columns of a graph of ``(name, names that it reads)``; each end reads some values.

    Keys are ``in:x`` for inputs, ``node:name``, and ``out:0`` for ends. ``late``: inputs, such as
    targets, that stand beside their reader and not at the left.

    >>> layered(("x", "y", "z"), [("q", ("x", "y")), ("f", ("q", "z"))], [("f",)]).columns
    (('in:x', 'in:y', 'in:z'), ('node:q', 'via:z:1'), ('node:f',), ('out:0',))
    """
    key = {name: f"in:{name}" for name in inputs} | {name: f"node:{name}" for name, _ in nodes}
    column = dict.fromkeys(inputs, 0)
    for name, reads in nodes:
        column[name] = 1 + max(column[r] for r in reads)
    last = 1 + max(column.values(), default=0)
    uses = [
        *((r, f"node:{name}", port, column[name]) for name, reads in nodes
          for port, r in enumerate(reads)),
        *((r, f"out:{i}", port, last) for i, end in enumerate(ends) for port, r in enumerate(end)),
    ]  # fmt: skip
    for name in late:
        column[name] = min((at for r, _, _, at in uses if r == name), default=1) - 1
    columns: list[list[str]] = [[] for _ in range(last + 1)]
    for name, at in column.items():
        columns[at].append(key[name])
    columns[last] += [f"out:{i}" for i in range(len(ends))]
    wires = []
    for source, target, port, end in uses:
        via = [f"via:{source}:{i}" for i in range(column[source] + 1, end)]
        for i, waypoint in enumerate(via, column[source] + 1):
            if waypoint not in columns[i]:
                columns[i].append(waypoint)
        wires.append(Wire(key[source], tuple(via), target, port))
    starts = tuple(key[name] for name in inputs)
    columns = _ordered(columns, wires)
    rank = {k: i for column_ in columns for i, k in enumerate(column_)}
    slots: dict[str, tuple[int, ...]] = {}
    for target in dict.fromkeys(wire.target for wire in wires):
        into = [wire for wire in wires if wire.target == target]
        into.sort(key=lambda wire: rank[(wire.source, *wire.via)[-1]])
        slots[target] = tuple(wire.port for wire in into)
    wires = [wire._replace(port=slots[wire.target].index(wire.port)) for wire in wires]
    beside = tuple(key[name] for name in late if column[name])
    return Layers(tuple(map(tuple, columns)), tuple(wires), starts, slots, beside)


def _ordered(columns: list[list[str]], wires: Sequence[Wire]) -> list[list[str]]:
    """The order in each column, with the fewest crossings found in a few sweeps."""
    links = {(a, b) for w in wires for a, b in _steps(w)}
    before: dict[str, list[str]] = {}
    after: dict[str, list[str]] = {}
    for a, b in sorted(links):
        before.setdefault(b, []).append(a)
        after.setdefault(a, []).append(b)
    best, fewest = columns, _crossings(columns, before)
    for sweep in range(SWEEPS if fewest else 0):
        beside = after if sweep % 2 else before
        columns = [list(column) for column in columns]
        order = range(len(columns) - 2, -1, -1) if sweep % 2 else range(1, len(columns))
        for i in order:
            rank = {k: j for column in columns for j, k in enumerate(column)}

            def middle(k: str, own: Mapping[str, int] = rank) -> float:
                near = [own[other] for other in beside.get(k, ())]  # noqa: B023 - used at once
                return sum(near) / len(near) if near else own[k]

            columns[i].sort(key=middle)
        crossings = _crossings(columns, before)
        if crossings < fewest:
            best, fewest = columns, crossings
    return best


def _steps(wire: Wire) -> list[tuple[str, str]]:
    stops = (wire.source, *wire.via, wire.target)
    return list(itertools.pairwise(stops))


def _crossings(columns: Sequence[Sequence[str]], before: Mapping[str, Sequence[str]]) -> int:
    count = 0
    for left, right in itertools.pairwise(columns):
        rank = {k: i for i, k in enumerate(left)}
        ends = [(rank[a], j) for j, b in enumerate(right) for a in before.get(b, ()) if a in rank]
        count += sum((a - c) * (b - d) < 0 for i, (a, b) in enumerate(ends) for c, d in ends[:i])
    return count


def place(layers: Layers, sizes: Mapping[str, Size], width: float) -> Placed:
    """Coordinates for everything, in rows of at most ``width`` where that is possible."""
    size = {k: sizes.get(k, Size(0, 4, 4)) for column in layers.columns for k in column}
    y = _heights(layers, size)
    wide = [max(size[k].width for k in column) for column in layers.columns]
    # Rows: as many columns as fit; wires that turn from one to the next need a margin.
    rows, lefts, x = [list[int]()], list[float](), 0.0
    room = width if sum(wide) + GAP * (len(wide) - 1) <= width else width - MARGIN
    moved: dict[str, float] = {}  # inputs that begin their reader's row: where they end
    for i, w in enumerate(wide):
        last = all(k.startswith("out:") for k in layers.columns[i])
        dots = i == 1 and wide[0] < NARROW
        needs = w
        if any(k in layers.late for k in layers.columns[i]) and i + 1 < len(wide):
            both = w + GAP + wide[i + 1]  # a target and its reader
            needs = both if MARGIN + both <= room else w
        if rows[-1] and x + needs > room and not last and not dots:
            rows.append([])
            x = MARGIN
            beside = [k for k in layers.columns[i - 1] if k in layers.late]
            widest = max((size[k].width for k in beside), default=0.0)
            if beside and MARGIN + widest + GAP + w <= room:
                moved |= dict.fromkeys(beside, MARGIN + widest)
                x += widest + GAP
        rows[-1].append(i)
        lefts.append(x)
        x += w + GAP
    at: dict[str, tuple[float, float]] = {}
    column_of = {k: i for i, column in enumerate(layers.columns) for k in column}
    row_of: dict[str, int] = {}
    bottoms, rights, top = list[float](), list[float](), 0.0
    for r, row in enumerate(rows):
        keys = [k for i in row for k in layers.columns[i] if k not in moved]
        keys += [k for k in layers.columns[row[0] - 1] if k in moved] if r else []
        high = min(y[k] - size[k].up for k in keys)
        low = max(y[k] + size[k].down for k in keys)
        shift = bottoms[-1] + CHANNEL - high if r else 0.0
        top = top if r else high
        for k in keys:
            i = column_of[k]
            end = moved.get(k, lefts[i] + wide[i])
            left = end - size[k].width if k in layers.late else lefts[i]
            at[k], row_of[k] = (left, y[k] + shift), r
        bottoms.append(low + shift)
        rights.append(lefts[row[-1]] + wide[row[-1]])
    turns: dict[tuple[int, str], int] = {}  # by (row, source): which lane its wire turns in

    def path(wire: Wire) -> str:
        a, out = wire.source, (at[wire.source][0] + size[wire.source].width,
                               at[wire.source][1] + size[wire.source].out)  # fmt: skip
        text = f"M{n(out[0])},{n(out[1])}"
        for b in (*wire.via, wire.target):
            port = size[b].ports[min(wire.port, len(size[b].ports) - 1)] if b == wire.target else 0
            end = (at[b][0], at[b][1] + port)
            if row_of[a] == row_of[b]:
                text += _curve(out, end)
            else:
                r = row_of[a]
                lane = turns.setdefault((r, wire.source), sum(k[0] == r for k in turns))
                text += _turn(end, rights[r] + 8 + 5 * lane, bottoms[r] + 9 + 5 * lane, lane)
            a, out = b, end
            if b != wire.target:  # straight through the column of a waypoint
                out = (end[0] + wide[column_of[b]], end[1])
                text += f"H{n(out[0])}"
        return text

    paths = tuple(path(wire) for wire in layers.wires)
    ends = [k for k in layers.columns[-1] if k.startswith("out:")]
    out = sum(at[k][1] for k in ends) / len(ends) if ends else 0.0
    starts = tuple(at[k][1] for k in layers.inputs)
    right = max(rights) + (MARGIN if len(rows) > 1 else 0)
    return Placed(at, paths, Size(right, -top, bottoms[-1], starts, out))


def _heights(layers: Layers, size: Mapping[str, Size]) -> dict[str, float]:
    """The height of every item's axis: level with what it reads, or with what reads it."""
    arrives: dict[str, list[tuple[str, float]]] = {}
    leaves: dict[str, list[tuple[str, float]]] = {}
    for wire in layers.wires:
        for a, b in _steps(wire):
            ports = size[b].ports
            port = ports[min(wire.port, len(ports) - 1)] if b == wire.target else 0.0
            arrives.setdefault(b, []).append((a, size[a].out - port))
            leaves.setdefault(a, []).append((b, port - size[a].out))
    y: dict[str, float] = {}
    for column in layers.columns:
        _stack(column, arrives, size, y)
    for column in reversed(layers.columns[:-1]):
        if all(k.startswith("in:") for k in column):
            _stack(column, leaves, size, y)
    return y


def _stack(
    column: Sequence[str], near: Mapping[str, Sequence[tuple[str, float]]],
    size: Mapping[str, Size], y: dict[str, float],
) -> None:  # fmt: skip
    """Heights for a column: each as close to the mean of its neighbours as the others allow.

    To keep the order and the distances o_i, y_i - o_i must not decrease: least squares under that
    constraint is isotonic regression, solved by pooling adjacent violators.
    """
    offset, pools = 0.0, list[list[float]]()  # a pool: [sum, count]
    offsets = []
    for i, k in enumerate(column):
        if i:
            offset += size[column[i - 1]].down + LANE + size[k].up
        offsets.append(offset)
        wanted = [y[other] + shift for other, shift in near.get(k, ()) if other in y]
        goal = sum(wanted) / len(wanted) if wanted else 0.0
        pools.append([goal - offset, 1.0])
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] >= pools[-1][0] / pools[-1][1]:
            total, count = pools.pop()
            pools[-1][0] += total
            pools[-1][1] += count
    i = 0
    for total, count in pools:
        for _ in range(int(count)):
            y[column[i]] = total / count + offsets[i]
            i += 1


def _curve(a: tuple[float, float], b: tuple[float, float]) -> str:
    if abs(a[1] - b[1]) < 0.05:
        return f"H{n(b[0])}"
    # The bend is at the right end; after a narrow item in a wide column the wire starts level.
    bend = max(b[0] - GAP, a[0])
    middle = (bend + b[0]) / 2
    return f"H{n(bend)}C{n(middle)},{n(a[1])} {n(middle)},{n(b[1])} {n(b[0])},{n(b[1])}"


def _turn(b: tuple[float, float], right: float, channel: float, lane: int) -> str:
    """From the end of one row to the start of the next."""
    left = MARGIN / 2 - 3 * lane
    return f"H{n(right)}V{n(channel)}H{n(left)}V{n(b[1])}H{n(b[0])}"


def n(v: float) -> str:
    """A coordinate to a tenth, without a minus zero."""
    return f"{math.floor(v * 10 + 0.5) / 10:g}"
