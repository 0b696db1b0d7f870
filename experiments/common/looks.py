"""The looks at a run on disk: one that was stopped, however it was, goes on from the last."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax.numpy as jnp

from experiments.common.run import checkpoint
from fnn.training.leaves import filled, named, targets
from fnn.training.saving import manager, quietly, reason

# Options that change nothing that is learned.
FREE = {"out", "resume", "command", "beside_torch"}


@contextmanager
def looks(options: Any) -> Iterator[Looks]:
    """The looks in the folder of a run, which is emptied unless the run is to be resumed."""
    with quietly():
        opened = Looks(options)
        try:
            yield opened
        finally:
            opened.manager.close()


class Looks:
    """Looks at one run. Orbax writes each under another name until it is complete."""

    def __init__(self, options: Any) -> None:
        self.folder = checkpoint(options.resume, options.out).absolute()
        names = [f.name for f in dataclasses.fields(options) if f.name not in FREE]
        self.settings = {name: getattr(options, name) for name in names}
        self.manager = manager(self.folder)

    def save(self, step: int, tree: Any, facts: dict[str, Any]) -> None:
        """Saves arrays and facts, those as JSON; returns when they are on disk."""
        import orbax.checkpoint as ocp

        items = ocp.args.Composite(
            arrays=ocp.args.StandardSave(named(tree)),
            facts=ocp.args.JsonSave({"settings": self.settings, **facts}),
        )
        try:
            self.manager.save(step, args=items)
            self.manager.wait_until_finished()
        except Exception as error:
            raise ValueError(
                f"step {step} could not be written into {self.folder} ({reason(error)}); those "
                "before are as they were: the same command with --resume goes on from there"
            ) from error

    def last(self, like: Any) -> tuple[Any, dict[str, Any]]:
        """The arrays, in a tree like this one, and the facts of the last look; ``like`` and no
        facts where there is none.

        Raises:
          ValueError: it cannot be read, or it is of a run with other settings.
        """
        step = self.manager.latest_step()
        if step is None:
            return like, {}
        facts = self._read(step, "facts", None)
        self._require_same(facts.get("settings", {}))
        arrays = self._read(step, "arrays", targets(like))
        return filled(like, {name: jnp.asarray(a) for name, a in arrays.items()}), facts

    def _read(self, step: int, item: str, wanted: Any) -> Any:
        import orbax.checkpoint as ocp

        kind = ocp.args.StandardRestore(wanted) if wanted else ocp.args.JsonRestore()
        try:
            return self.manager.restore(step, args=ocp.args.Composite(**{item: kind}))[item]
        except Exception as error:
            older = [number for number in self.manager.all_steps() if number < step]
            then = f"to go on from step {max(older)}" if older else "and leave out --resume"
            raise ValueError(
                f"--resume: {self.folder / str(step)} cannot be read as a checkpoint "
                f"({reason(error)}); move it away {then}"
            ) from error

    def _require_same(self, saved: dict[str, Any]) -> None:
        if saved.keys() != self.settings.keys():
            raise ValueError(
                f"--resume: {self.folder} is not of such a run; name the folder of one with --out"
            )
        for name, value in self.settings.items():
            if value != saved[name]:
                raise ValueError(
                    f"--{name.replace('_', '-')} is {value}, but the run in {self.folder.parent} "
                    f"has {saved[name]}; give the same again, or leave out --resume to begin anew"
                )
