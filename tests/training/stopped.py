"""A run in a process of its own, which test_stopped.py ends at any instant."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import fnn
from fnn.training.curves import curves


def learn(folder: Path, result: Path, begun: Any, devices: int = 1) -> None:
    """Trains with checkpoints in ``folder``, then writes what was learned to ``result``.

    Args:
      begun: an event, to be set after the first call.
      devices: how many the process has.
    """
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_compilation_cache_dir", str(folder.parent / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 4))
    net = fnn.serial(fnn.linear(5), fnn.tanh(), fnn.dropout(0.2), fnn.linear(1))

    def progress(row: Any, left: float) -> None:
        pass

    def within(*_: Any) -> None:
        begun.set()
        time.sleep(0.03)

    progress.within = within  # type: ignore[attr-defined]
    fitted = fnn.fit(
        net, fnn.squared_error(), x, x[:, :1], optimizer=fnn.sgd(0.01, 0.9), epochs=40,
        batch_size=8, steps_per_call=2, progress=progress, checkpoint=folder, save_every=0.05,
    )  # fmt: skip
    arrays = jax.tree.leaves((fitted.params, fitted.last, fitted.state))
    history = [{k: v for k, v in row.items() if k != "seconds"} for row in fitted.history]
    picture = curves(history, fitted.best_epoch, fitted.message)
    np.savez(result.with_suffix(".part.npz"), *arrays, json.dumps(history), picture)
    result.with_suffix(".part.npz").rename(result)
