"""One function at every number of a dtype: in chunks, on all cores, to go on after Ctrl-C."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.selftest import peers
from experiments.selftest.references import float64
from experiments.selftest.verify import Verified, verify
from fnn.check import ulps
from fnn.check.ulps import KINDS, Score, Tally
from fnn.training.interrupts import deferred

CHUNK = 2**17  # inputs: their arrays stay in the caches
SAMPLE = 2**22  # inputs for PyTorch
SAVED = 3.0  # seconds between two writes of the state

Scores = dict[str, dict[str, Score]]  # by whom, then of "value" and "derivative"


@dataclass(frozen=True)
class Record:
    """What a sweep has found so far, and of which program.

    ``key``: a hash of the compiled programs' source (StableHLO) and of the versions; a record
    with another key is of another function.
    """

    name: str
    dtype: str
    key: str
    total: int
    done: int = 0
    seconds: float = 0.0
    scores: Scores = field(default_factory=dict)
    verified: Verified | None = None

    @property
    def finished(self) -> bool:
        """Whether every input is in, and the reference verified."""
        return self.verified is not None

    def misses(self) -> list[str]:
        """The targets that fnn misses, in words."""
        limit, found = ulps.LIMITS[self.dtype], []
        for what, score in self.scores.get("fnn", {}).items():
            for kind in ("normal", "beyond", "small"):
                tally = score.tallies[kind]
                if tally.over:
                    at = ulps.as_float(tally.bits, self.dtype)
                    found.append(
                        f"{self.name}, {self.dtype}: {what} is off by {tally.worst:.3g} units at "
                        f"{at:.9g}, by more than {limit:g} at {tally.over:,} inputs ({kind})"
                    )
        if self.verified is not None and not self.verified.ok:
            found.append(f"{self.name}, {self.dtype}: {self.verified}")
        return found

    def save(self, path: Path) -> None:
        """Writes the record, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        os.replace(part, path)

    @classmethod
    def load(cls, path: Path) -> Record | None:
        """The record in the file; None if there is none, or none that can be read."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            scores = {
                who: {what: _score(score) for what, score in by_what.items()}
                for who, by_what in raw.pop("scores").items()
            }
            verified = raw.pop("verified")
            return cls(**raw, scores=scores, verified=Verified(**verified) if verified else None)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None


def _score(raw: dict[str, Any]) -> Score:
    return Score(
        {kind: Tally(**raw["tallies"][kind]) for kind in KINDS}, raw["subnormal"], raw["flushed"]
    )


def merged(a: Scores, b: Scores) -> Scores:
    """Both together, whoever is in one only included."""
    none: dict[str, Score] = {}
    return {
        who: {
            what: a.get(who, none).get(what, Score()) + b.get(who, none).get(what, Score())
            for what in ("value", "derivative")
        }
        for who in a | b
    }


class Sweep:
    """The programs of one function in one dtype: fnn's and JAX's, each compiled by itself as a
    user would, and the float64 reference."""

    def __init__(self, name: str, dtype: str, last: int | None = None, peer: bool = True) -> None:
        self.name, self.dtype = name, dtype
        self.bits = 8 * jnp.dtype(dtype).itemsize
        self.total = last or 2**self.bits
        self.size = min(CHUNK, self.total)
        self.programs = {"fnn": jax.jit(peers.of_block(peers.BLOCKS[name]))}
        if peer and name in peers.JAX:
            self.programs["jax.nn"] = jax.jit(peers.of_jax(peers.JAX[name]))
        self.peer = peer

    @functools.cached_property
    def key(self) -> str:
        """Changes when the function, its peer, the reference, JAX or the device does."""
        like = jax.ShapeDtypeStruct((self.size,), self.dtype)
        with jax.enable_x64(False):
            texts = [program.lower(like).as_text() for program in self.programs.values()]
        with jax.enable_x64(True):
            wide = jax.ShapeDtypeStruct((self.size,), jnp.float64)
            texts.append(float64(self.name).lower(wide).as_text())
        texts += [jax.__version__, _version(), jax.devices()[0].device_kind]
        return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]

    def chunk(self, start: int) -> Scores:
        """The scores at the bit patterns from ``start`` on."""
        x = jnp.asarray(ulps.floats(np.arange(start, start + self.size), self.dtype))
        with jax.enable_x64(False):
            results = {who: program(x) for who, program in self.programs.items()}
        return self.scored(x, results)

    def scored(self, x: jax.Array, results: dict[str, Any]) -> Scores:
        """Values and derivatives against the reference."""
        with jax.enable_x64(True):
            truths = float64(self.name)(_widened(x))
        return {
            who: {
                what: ulps.judge(x, got, truth)
                for what, got, truth in zip(("value", "derivative"), both, truths, strict=True)
            }
            for who, both in results.items()
        }

    def sampled(self) -> Scores:
        """PyTorch's scores at inputs spread evenly over all bit patterns."""
        torch = peers.of_torch(self.name) if self.peer else None
        if torch is None:
            return {}
        scores: Scores = {}
        count = min(SAMPLE, self.total)
        for start in range(0, count, self.size):
            x = ulps.floats(spread(start, start + self.size, self.total // count), self.dtype)
            results = {"torch": tuple(map(jnp.asarray, torch(x)))}
            scores = merged(scores, self.scored(jnp.asarray(x), results))
        return scores


_widened = jax.jit(ulps.widened)


def spread(first: int, last: int, stride: int) -> np.ndarray:
    """One bit pattern out of each ``stride`` of them, its low digits as if drawn."""
    i = np.arange(first, last, dtype=np.int64)
    return i * stride + i * 647 % stride


def sweep(job: Sweep, path: Path, again: bool = False) -> Iterator[Record]:
    """Runs what is left of a sweep; yields the record after every chunk, and keeps it in a file.

    Raises:
      KeyboardInterrupt: on Ctrl-C, when the record is written; it says how far the sweep came.
    """
    record = started(job, path, again)
    if record.finished:
        yield record
        return
    clock = written = time.perf_counter()
    before = record.seconds
    workers = _cores()
    pool = ThreadPoolExecutor(workers)
    try:
        with deferred() as check_interrupt:
            # XLA computes a chunk on one core or on several; chunks side by side fill the rest.
            starts = range(record.done, job.total, job.size)
            for scores in pool.map(job.chunk, starts):
                now = time.perf_counter()
                record = replace(
                    record, done=record.done + job.size, seconds=before + now - clock,
                    scores=merged(record.scores, scores),
                )  # fmt: skip
                if now - written > SAVED:
                    record.save(path)
                    written = now
                yield record
                check_interrupt()
            scores = merged(record.scores, job.sampled())
            record = replace(record, scores=scores, verified=verify(job.name, job.dtype, scores))
            yield record
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted: {job.name} in {job.dtype} is {record.done / job.total:.0%} done, kept "
            f"in {path}; run it again to go on"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
        record.save(path)


def started(job: Sweep, path: Path, again: bool = False) -> Record:
    """The record to go on from: the one in the file if it is of this program."""
    kept = None if again else Record.load(path)
    if kept is not None and (kept.key, kept.total) == (job.key, job.total):
        return kept
    return Record(job.name, job.dtype, job.key, job.total)


def _version() -> str:
    try:
        return importlib.metadata.version("fnn")
    except importlib.metadata.PackageNotFoundError:
        return "a checkout"


def _cores() -> int:
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
