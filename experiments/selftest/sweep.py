"""One function at every number of a dtype, in chunks; can be resumed after Ctrl-C."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fnn
from experiments.selftest import peers
from experiments.selftest.references import float64
from experiments.selftest.verify import Verified, verify
from fnn.check import ulps
from fnn.check.all_floats import CHUNK, in_parallel, spread
from fnn.check.ulps import KINDS, Score, Tally
from fnn.training.interrupts import deferred

TORCH_INPUTS = 2**22
SAVE_SECONDS = 3.0  # between two writes of the state

Scores = dict[str, dict[str, Score]]  # of fnn and each peer, then of "value" and "derivative"


@dataclass(frozen=True)
class Record:
    """The scores of a sweep so far.

    ``key``: a hash of the compiled programs' source (StableHLO) and of the versions; a record
    with another key belongs to another function.
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
        """Whether every input is done and the reference verified."""
        return self.verified is not None

    def misses(self) -> list[str]:
        """The targets that fnn misses, in words."""
        limit, words = ulps.LIMITS[self.dtype], []
        for what, score in self.scores.get("fnn", {}).items():
            for kind in ("normal", "beyond", "small"):
                tally = score.tallies[kind]
                if tally.over:
                    at = ulps.as_float(tally.bits, self.dtype)
                    words.append(
                        f"{self.name}, {self.dtype}: {what} is off by {tally.worst:.3g} units at "
                        f"{at:.9g}, by more than {limit:g} at {tally.over:,} inputs ({kind})"
                    )
        if self.verified is not None and not self.verified.ok:
            words.append(f"{self.name}, {self.dtype}: {self.verified}")
        return words

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
    return Score(**(raw | {"tallies": {kind: Tally(**raw["tallies"][kind]) for kind in KINDS}}))


def merged(a: Scores, b: Scores) -> Scores:
    """The scores of both."""
    zero = {"value": Score(), "derivative": Score()}
    return {
        who: {what: a.get(who, zero)[what] + b.get(who, zero)[what] for what in zero}
        for who in a | b
    }


class Sweep:
    """The programs of one function in one dtype: fnn's, JAX's, and the float64 reference.

    Each is compiled by itself, as a user would.
    """

    def __init__(self, name: str, dtype: str, last: int | None = None, peer: bool = True) -> None:
        self.name, self.dtype = name, dtype
        self.total = last or 2 ** jnp.finfo(dtype).bits
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
        texts += [jax.__version__, fnn.__version__, jax.devices()[0].device_kind]
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
                what: ulps.score(x, got, truth)
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
        count = min(TORCH_INPUTS, self.total)
        for start in range(0, count, self.size):
            x = ulps.floats(spread(start, start + self.size, self.total // count), self.dtype)
            results = {"torch": tuple(map(jnp.asarray, torch(x)))}
            scores = merged(scores, self.scored(jnp.asarray(x), results))
        return scores


_widened = jax.jit(ulps.widened)


def sweep(job: Sweep, path: Path, again: bool = False) -> Iterator[Record]:
    """Runs or resumes a sweep; yields the record after every chunk, and saves it to a file.

    Raises:
      KeyboardInterrupt: on Ctrl-C, after the record is written; it says how far the sweep got.
    """
    record = started(job, path, again)
    if record.finished:
        yield record
        return
    clock = written = time.perf_counter()
    before = record.seconds
    try:
        with deferred() as check_interrupt:
            for scores in in_parallel(job.chunk, range(record.done, job.total, job.size)):
                now = time.perf_counter()
                scores, seconds = merged(record.scores, scores), before + now - clock
                record = replace(
                    record, done=record.done + job.size, seconds=seconds, scores=scores
                )
                if now - written > SAVE_SECONDS:
                    record.save(path)
                    written = now
                yield record
                check_interrupt()
            scores = merged(record.scores, job.sampled())
            worst = {
                tally.bits
                for by_what in scores.values()
                for score in by_what.values()
                for tally in score.tallies.values()
            }
            record = replace(record, scores=scores, verified=verify(job.name, job.dtype, worst))
            yield record
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted: {job.name} in {job.dtype} is {record.done / job.total:.0%} done, saved "
            f"in {path}; run it again to continue"
        ) from None
    finally:
        record.save(path)


def started(job: Sweep, path: Path, again: bool = False) -> Record:
    """The record to continue: the one in the file if it belongs to this program."""
    saved = None if again else Record.load(path)
    if saved is not None and (saved.key, saved.total) == (job.key, job.total):
        return saved
    return Record(job.name, job.dtype, job.key, job.total)
