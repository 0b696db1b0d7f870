"""Cheap compilation."""

from __future__ import annotations

import jax
import pytest

from fnn.compiling import jit_for_few_runs, many_runs, quick


def test_other_backends_get_none_of_the_options_of_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would refuse to compile."""
    assert quick.__wrapped__()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert quick.__wrapped__() == {}


def test_programs_that_run_many_times_are_compiled_as_jax_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = []
    monkeypatch.setattr(jax, "jit", lambda f, compiler_options: options.append(compiler_options))
    jit_for_few_runs(abs)
    with many_runs():
        jit_for_few_runs(abs)
    jit_for_few_runs(abs)
    assert options == [quick(), {}, quick()]
