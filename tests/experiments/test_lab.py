"""Programs compiled for accelerators that are not here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import accelerators, lab

pytestmark = pytest.mark.as_users

HLO = """
HloModule jit_f
%fused (p: bf16[8,4]) -> f32[8,4] {
  %p = bf16[8,4]{1,0} parameter(0)
  ROOT %c = f32[8,4]{1,0} convert(%p)
}
ENTRY %main (x: bf16[8,4], n: s32[]) -> (f32[8,4], u8[0]) {
  %x = bf16[8,4]{1,0} parameter(0), metadata={op_name="x(y)"}
  %n = s32[] parameter(1)
  %wide = f32[8,4]{1,0} fusion(%x), kind=kLoop, calls=%fused
  %gemm = (f32[8,4]{1,0}, s8[16]{0}) custom-call(%wide, %x), custom_call_target="g"
  %part = f32[8,4]{1,0} get-tuple-element(%gemm), index=0
  ROOT %t = (f32[8,4], u8[0]) tuple(%part)
}
"""


def test_bytes_of_the_kernels_of_the_entry_computation() -> None:
    assert lab.entry_kernels(HLO) == {"%wide": 128 + 64, "%gemm": 128 + 16 + 128 + 64}


def test_without_the_compilers_it_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "installed", lambda target: False)
    with pytest.raises(ValueError, match=r"for h100 and v5e are not installed: pip install -e"):
        accelerators.main(accelerators.Options())


def test_every_block_and_step_is_a_program_by_hand_and_by_autodiff() -> None:
    options = accelerators.Options(batch=1, rows=2)
    pairs = accelerators.both_programs(options, "bfloat16")
    assert sum(name.startswith("step: ") for name in pairs) == 3 and len(pairs) > 15
    for name in ("gelu", "conv 3x3 1->32, conv_1", "step: CNN, batch 256"):
        arguments, functions = pairs[name]
        by_hand, autodiff = (jax.eval_shape(f, *arguments) for f in functions)
        assert jax.tree.map(jnp.shape, by_hand) == jax.tree.map(jnp.shape, autodiff)


def test_ratios_and_what_is_not_known() -> None:
    fnn, other = lab.Figures(2e6, 0, None, None, 3, 0.5), lab.Figures(4e6, 10**6, 1.0, None, 4, 1)
    assert accelerators.compared(fnn, other) == [
        "2.0", "0.50", "0.0, 1.0", "-", "-", "3, 4", "0.5, 1.0",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("target", lab.TARGETS)
def test_convolutions_and_pools_move_no_more_than_autodiffs(
    target: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not lab.installed(target):
        pytest.skip(f"the compiler for {target} is not installed: extra accelerators")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pairs: dict[str, Any] = accelerators.both_programs(accelerators.Options(batch=8), dtype)
    few = [name for name in pairs if name.startswith(("conv 3x3", "conv 7x7", "linear", "max_p"))]
    for name in few:
        if target == "v5e" and name.startswith("max_pool"):
            continue  # known: RESULTS.md
        arguments, functions = pairs[name]
        by_hand, autodiff = (lab.compiled_for(target, f, *arguments) for f in functions)
        assert by_hand.bytes <= 1.05 * autodiff.bytes, name
        assert lab.compiled_for(target, functions[0], *arguments) == by_hand  # from the cache
