"""The results of sweeps and searches: a table for the terminal, and the accuracy page."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from experiments.benchmarks.report import machine
from experiments.selftest.loss_search import Search
from experiments.selftest.sweep import Record
from fnn.check import ulps
from fnn.check.ulps import KINDS

PEERS = {"fnn": "fnn", "jax.nn": "jax.grad", "torch": "PyTorch"}
WHAT = ("value", "derivative")
EDGES = (
    "function | wrong limits | subnormal results | given as 0 | subnormal inputs off: value | "
    "derivative | reference"
)
COLUMNS = [f"{peer} {what}" for peer in PEERS.values() for what in WHAT]

ABOUT = """\
# Accuracy

Errors in units in the last place (ulp: the distance between neighbouring numbers at the size of
the true result), the largest over every input whose true result is a normal number, and the
input that has it. Written by

    python -m experiments.selftest exhaustive --page experiments/benchmarks/ACCURACY.md

- Inputs: all 4,294,967,296 float32, all 65,536 bfloat16 and float16; fnn and jax.nn see every one,
  PyTorch one in 1,024 of float32. Each function is compiled by itself, with XLA's default options.
- `jax.grad` is that of the counterpart in jax.nn or jax.numpy. "lost": more than a million units,
  which is every digit; "inf": infinite or NaN where the truth is a normal number.
- At a kink the truth is the derivative that fnn declares. `jax.grad` of leaky_relu takes 1 at 0,
  which is as good a choice but counts as an error here.
- Truth is a float64 reference, apart from fnn's code. It is held against mpmath at 50 digits on
  some 5,000 inputs a function, among them the worst ones; the last column of the second table
  is its largest relative error there (one unit of float32 is 6e-8 to 1.2e-7).
- Targets: 4 units in float32 and 1 in bfloat16 and float16, which are computed in float32 and
  rounded once. Infinities give the limit and NaN gives NaN in value and derivative; `step`,
  `identity` and `negate` keep nothing for backward, so their derivative at NaN is a constant.
- Subnormal numbers: the second table says how many true results are subnormal, and for how many
  of those fnn gives 0, as XLA does on CPU in float32 and bfloat16. Subnormal inputs are read as 0
  there; "off" counts those of them whose result then misses the truth by more than the target.
"""


def table(records: Iterable[Record | Search]) -> Table:
    """The errors of fnn and its peers as a table for the terminal."""
    out = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for number, column in enumerate(("function", "dtype", *COLUMNS)):
        out.add_column(Text(column), justify="right" if number > 1 else "left")
    for record in records:
        out.add_row(*map(Text, [record.name, record.dtype, *_errors(record)]))
    return out


def write(path: Path, records: Sequence[Record | Search]) -> None:
    """Writes the accuracy page: all finished sweeps and all searches."""
    parts = [ABOUT, f"{datetime.date.today()}; {_machine()}; jax {jax.__version__}.\n"]
    for dtype in ulps.LIMITS:
        sweeps = [r for r in records if isinstance(r, Record) and r.dtype == dtype and r.finished]
        if sweeps:
            parts += [f"## {dtype}\n", _lines(("function", *COLUMNS), _rows(sweeps))]
            parts.append(_lines(EDGES.split(" | "), [_edges(record) for record in sweeps]))
    losses = [record for record in records if isinstance(record, Search)]
    if losses:
        parts += ["## Losses, float32\n", LOSSES, _lines(("loss", *COLUMNS), _rows(losses))]
    misses = [f"- {miss}" for record in records for miss in record.misses()]
    parts += ["## Targets missed\n", "\n".join(misses or ["None."]) + "\n"]
    left = [f"{r.name} in {r.dtype}" for r in records if isinstance(r, Record) and not r.finished]
    if left:
        parts.append(f"Not run to the end: {', '.join(left)}.\n")
    path.write_text("\n".join(parts), encoding="utf-8")


LOSSES = """\
The worst of a grid of a million points and of a climb from its 4,096 worst (5 to 9 million
evaluations a loss); logits up to 256 in size, 43.5 for several classes (beyond a gap of 87.3 single
terms are subnormal). The last argument is the target; classes have label 0. Where the gradient of
a soft target is a difference, p - t, its error is counted in units of the larger terms: the
difference itself may be as small as one likes. For probabilities it is counted like any other.
"""


def _rows(records: Iterable[Record | Search]) -> list[list[str]]:
    return [[record.name, *_errors(record)] for record in records]


def _errors(record: Record | Search) -> list[str]:
    return [_error(record, who, what) for who in PEERS for what in WHAT]


def _error(record: Record | Search, who: str, what: str) -> str:
    if isinstance(record, Search):
        if who not in record.worst:
            return "-"
        worst = record.worst[who][what]
        return _cell(worst.error, worst.inputs)
    if who not in record.scores:
        return "-"
    tally = record.scores[who][what].tallies["normal"]
    return _cell(tally.worst, (ulps.as_float(tally.bits, record.dtype),))


def _cell(error: float, inputs: Iterable[float]) -> str:
    if error == 0:
        return "0"
    text = "inf" if error == float("inf") else "lost" if error > 1e6 else f"{error:.3g}"
    return f"{text} ({', '.join(f'{v:.6g}' for v in inputs)})"


def _edges(record: Record) -> list[str]:
    fnn = record.scores["fnn"]
    wrong = sum(fnn[w].tallies[kind].over for w in WHAT for kind in ("beyond", "small"))
    subnormal, flushed = (sum(getattr(fnn[w], n) for w in WHAT) for n in ("subnormal", "flushed"))
    inputs = fnn["value"].tallies["subnormal input"].count
    off = [f"{fnn[what].tallies[KINDS[-1]].over:,} of {inputs:,}" for what in WHAT]
    reference = f"{record.verified.error:.1e}" if record.verified else "-"
    return [record.name, f"{wrong:,}", f"{subnormal:,}", f"{flushed:,}", *off, reference]


def _lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = [":--", *("--:" for _ in heads[1:])]
    return "".join(f"| {' | '.join(row)} |\n" for row in (heads, rule, *rows))


def _machine() -> str:
    """The accelerator or the processor, in words."""
    if (device := jax.devices()[0]).platform != "cpu":
        return str(device.device_kind)
    return machine()
