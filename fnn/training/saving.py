"""Checkpoints on disk: what a run that was stopped, however it was, goes on from."""

from __future__ import annotations

import logging
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np

from fnn.refusals import described, warn
from fnn.training.diagnostics.watch import Watch
from fnn.training.identity import contents, identity, require_same, warn_of_others
from fnn.training.interrupts import Terminated
from fnn.training.leaves import filled, kind, named, targets, zeros
from fnn.training.loop import Best, NonFiniteLoss, Now
from fnn.training.preparation import Settings
from fnn.training.run import Row, Run
from fnn.training.source import SourceError

KEPT = 2  # checkpoints
# Of a file that cannot be read, each array's thread says so, when nobody waits for it any more.
LATE, WAIT = "Event loop is closed", 0.2  # seconds
UNFINISHED = "*.orbax-checkpoint-tmp*"
CLEAN = (KeyboardInterrupt, Terminated, SourceError)  # these come between two calls


class Saver:
    """Saves a run into a folder, and takes up what was saved there.

    A checkpoint is a numbered folder that Orbax writes in the background, under another name until
    it is complete. ``arrays``: parameters, the optimiser's state, the best parameters, what the
    epoch under way has gathered. ``facts``: the history and other numbers, and what the run is
    made of. Order and randomness are functions of key, epoch and step, so nothing else is needed to
    go on bit for bit.
    """

    def __init__(
        self, folder: Any, every: float, run: Run, settings: Settings,
        now: Now, best: Best, watch: Watch | None, agreed: Callable[[int], int] = int,
    ) -> None:  # fmt: skip
        self.folder, self.every, self.agreed = Path(folder).absolute(), every, agreed
        self.run, self.now, self.best, self.watch = run, now, best, watch
        self.identity = identity(run, settings, now.params, now.state)
        self.contents = contents(run, now.params, now.state)
        self.contents["microbatches"] = settings.microbatches
        self.place: tuple[int, int] | None = None  # of the last: epochs, examples of the next
        self.due = time.monotonic() + every
        self.is_behind = False  # there is a checkpoint from which to go on once more
        _require_folder(self.folder)
        with ExitStack() as stack:
            stack.enter_context(quietly())
            self.manager = manager(self.folder)
            stack.callback(self._close)
            self.number = self.manager.latest_step() or 0
            if self.number:
                self._take_up()
            self.open = stack.pop_all()

    def __enter__(self) -> None:
        """At the end of the block it saves, and waits."""

    def __exit__(
        self, cause: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        try:
            if error is None or isinstance(error, CLEAN):
                self._save()
            elif isinstance(error, NonFiniteLoss) and error.at_once:
                self._step_back()
        finally:
            self._wait()
            self.open.close()

    def __call__(self) -> None:
        """Saves if it is time to, and the save before is complete."""
        for row in self.now.history[-1:]:  # refused now, not when it is time
            _plain(row)
        is_due = time.monotonic() >= self.due and not self.manager.is_saving_in_progress()
        if self.agreed(is_due):
            self._save()

    # ---- saving --------------------------------------------------------------------------------

    def _save(self) -> None:
        import orbax.checkpoint as ocp

        self._wait()
        place = len(self.now.history), self.now.used
        if place == self.place:
            return
        self.place, self.number = place, self.number + 1
        self.due = time.monotonic() + self.every
        gathered = self._gathered()
        arrays = named(self._own(self.now.at_start)) | gathered
        facts = self._facts() | {"gathered": {name: kind(a) for name, a in gathered.items()}}
        items = ocp.args.Composite(
            # Orbax refuses arrays without a number in them.
            arrays=ocp.args.StandardSave({name: a for name, a in arrays.items() if a.size}),
            facts=ocp.args.JsonSave(facts),
        )
        try:
            self.manager.save(self.number, args=items)
        except Exception as error:
            self._failed(error)

    def _step_back(self) -> None:
        """Gives up the last checkpoint, from which the next loss is not finite, if there is one
        before: from that the run comes to the last parameters that were good."""
        self._wait()
        self.is_behind = len(self.manager.all_steps()) > 1
        if self.is_behind:
            self.manager.delete(self.number)

    def _wait(self) -> None:
        """Until what was to be saved is on the disk."""
        try:
            self.manager.wait_until_finished()
        except Exception as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        self.place = None
        self._close()  # the next save would meet the error of this one
        for unfinished in self.folder.glob(UNFINISHED):  # they would fill the disk
            shutil.rmtree(unfinished, ignore_errors=True)
        with suppress(Exception):
            self.manager = manager(self.folder)
        warn(
            f"fit: a checkpoint could not be written into {self.folder} ({reason(error)}); those "
            "before are as they were, and the next save tries again"
        )

    def _close(self) -> None:
        with suppress(Exception):  # what failed has been said
            self.manager.close()

    def _own(self, at_start: Any) -> dict[str, Any]:
        """What is of the shapes of the run's own parameters and state."""
        now = self.now
        own = {"params": now.params, "state": now.state, "best": self.best.params}
        return own if at_start is None else own | {"at_start": at_start}

    def _gathered(self) -> dict[str, np.ndarray]:
        """What grows: in the epoch under way, and the measurements of diagnostics."""
        gathered = {} if self.watch is None else self.watch.gathered()
        gathered["used"] = np.array(self.now.used)  # Orbax refuses to save no array at all
        if self.now.used:
            gathered["losses"] = np.concatenate(self.now.losses)
            gathered["sizes"] = np.concatenate(self.now.sizes)
        return gathered

    def _facts(self) -> dict[str, Any]:
        now, best = self.now, self.best
        return {
            "fnn": sys.modules["fnn"].__version__,
            "run": self.identity,
            "contents": {jax.__version__: self.contents},  # another one traces other programs
            "history": [_plain(row) for row in now.history],
            "used": now.used,
            "seconds": now.seconds,
            "best": [best.epoch, float(best.loss)],
            "at_start": now.at_start is not None,
        }

    # ---- taking up -----------------------------------------------------------------------------

    def _take_up(self) -> None:
        """Sets the run to where the last checkpoint was saved."""
        import orbax.checkpoint as ocp

        now, best = self.now, self.best
        path = self.folder / str(self.number)
        facts = self._read("facts", ocp.args.JsonRestore())
        if not {"fnn", "run", "history", "gathered"} <= facts.keys():
            raise ValueError(f"fit: {path} is not a checkpoint of fit's; give another folder")
        require_same(self.identity, facts["run"], self.folder)
        warn_of_others(self.contents, facts["contents"].get(jax.__version__, {}), self.folder)
        if (count := len(facts["history"])) > self.run.epochs:
            raise ValueError(
                f"fit: epochs is {self.run.epochs}, but the checkpoint in {self.folder} is of "
                f"{count} epochs; ask for {count} or more, or give another folder"
            )
        evaluated = self.run.evaluated(now.state, now.params)
        own = self._own(evaluated if facts["at_start"] else None) | {"best": evaluated}
        gathered = {name: zeros(words) for name, words in facts["gathered"].items()}
        wanted = {name: a for name, a in (targets(own) | gathered).items() if a.size}
        arrays = gathered | self._read("arrays", ocp.args.StandardRestore(wanted))
        own = filled(own, arrays)
        now.params, now.state, now.at_start = own["params"], own["state"], own.get("at_start")
        now.history, now.used, now.seconds = facts["history"], facts["used"], facts["seconds"]
        if now.used:
            now.losses, now.sizes = [arrays["losses"]], [arrays["sizes"]]
        best.params, (best.epoch, best.loss) = own["best"], facts["best"]
        if self.watch is not None:
            self.watch.take_up(arrays)
        self.place = count, now.used

    def _read(self, item: str, how: Any) -> Any:
        import orbax.checkpoint as ocp

        try:
            return self.manager.restore(self.number, args=ocp.args.Composite(**{item: how}))[item]
        except Exception as error:
            time.sleep(WAIT)
            older = [step for step in self.manager.all_steps() if step < self.number]
            then = f"to go on from {max(older)}" if older else "to begin anew"
            raise ValueError(
                f"fit: {self.folder / str(self.number)} cannot be read as a checkpoint "
                f"({reason(error)}); move it away {then}, or give another folder"
            ) from error


def manager(folder: Path) -> Any:
    try:
        import orbax.checkpoint as ocp
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "fit: checkpoint needs Orbax: pip install orbax-checkpoint", name=error.name
        ) from error
    options = ocp.CheckpointManagerOptions(
        max_to_keep=KEPT,
        cleanup_tmp_directories=True,
        # Where that fails in the background, the process would wait minutes before it ends.
        async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
    )
    return ocp.CheckpointManager(folder, item_names=("arrays", "facts"), options=options)


def _require_folder(folder: Path) -> None:
    """Makes the folder; refuses one that cannot be written to, or that holds something else."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    except OSError as error:
        raise ValueError(
            f"fit: checkpoint {folder} cannot be written to ({error.strerror}); name a folder that "
            "can"
        ) from error
    foreign = [name for name in names if not re.match(r"\d+($|\.orbax)|\.", name)]
    if foreign:
        raise ValueError(
            f"fit: checkpoint {folder} holds {', '.join(foreign[:3])}, which is not fit's; name a "
            "folder of its own"
        )


@contextmanager
def quietly() -> Iterator[None]:
    """Keeps Orbax from printing what is said in a line."""

    def is_not_orbax(record: logging.LogRecord) -> bool:
        # record.pathname is absl's own where something made this logger before absl was imported
        return not any("orbax" in f.f_code.co_filename for f, _ in traceback.walk_stack(None))

    def hook(raised: sys.UnraisableHookArgs) -> None:
        if str(raised.exc_value) != LATE:
            usual(raised)

    logger, usual = logging.getLogger("absl"), sys.unraisablehook
    logger.addFilter(is_not_orbax)
    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = usual
        logger.removeFilter(is_not_orbax)


def reason(error: Exception) -> str:
    """What went wrong, without where in Orbax."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error)
    system = re.search(r"([^:]+) \[os_error_code", text)
    return (
        system[1].strip() if system else f"{(text.splitlines() or [type(error).__name__])[0]:.200}"
    )


def _plain(row: Row) -> dict[str, float]:
    """A row of the history as JSON has it; ``on_epoch`` may have added other kinds of numbers."""
    for name, value in row.items():
        if np.ndim(value) or not np.issubdtype(np.asarray(value).dtype, np.number):
            raise TypeError(
                f"fit: on_epoch added {name!r} to the history: {described(value)}, which a "
                "checkpoint does not hold; needs a number"
            )
    return {name: v if type(v) in (int, float) else np.asarray(v).item() for name, v in row.items()}
