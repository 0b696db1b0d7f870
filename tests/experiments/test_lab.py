"""Programs compiled for accelerators that are not here."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import pytest

import fnn
from experiments.benchmarks import accelerators, block_cases, hlo, lab

pytestmark = pytest.mark.as_users

HLO = """
HloModule jit_f
%fused (p: bf16[8,4]) -> f32[8,4] {
  %p = bf16[8,4]{1,0} parameter(0)
  ROOT %c = f32[8,4]{1,0} convert(%p)
}
%row (all: f32[9,4], i: s32[], new: f32[4]) -> (f32[1,4], f32[9,4]) {
  %all = f32[9,4]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %new = f32[4]{0} parameter(2)
  %as_row = f32[1,4]{1,0} bitcast(%new)
  %old = f32[1,4]{1,0} dynamic-slice(%all, %i, %i), dynamic_slice_sizes={1,4}
  %moved = f32[9,4]{1,0} dynamic-update-slice(%all, /*index=1*/%as_row, %i, %i)
  ROOT %both = (f32[1,4]{1,0}, f32[9,4]{1,0}) tuple(%old, %moved)
}
%body (s: (s32[], f32[9,4], f32[4])) -> (s32[], f32[9,4], f32[4]) {
  %s = (s32[], f32[9,4]{1,0}, f32[4]{0}) parameter(0)
  %n = s32[] get-tuple-element(%s), index=0
  %table = f32[9,4]{1,0} get-tuple-element(%s), index=1
  %value = f32[4]{0} get-tuple-element(%s), index=2
  %r = (f32[1,4]{1,0}, f32[9,4]{1,0}) fusion(%table, %n, %value), kind=kLoop, calls=%row
  %next = f32[9,4]{1,0} get-tuple-element(%r), index=1
  ROOT %out = (s32[], f32[9,4]{1,0}, f32[4]{0}) tuple(%n, %next, %value)
}
ENTRY %main (x: bf16[8,4], n: s32[]) -> (f32[8,4], u8[0]) {
  %x = bf16[8,4]{1,0} parameter(0), metadata={op_name="x(y)"}
  %n = s32[] parameter(1)
  %start = (s32[], f32[9,4]{1,0}, f32[4]{0}) tuple(%n)
  %wide = f32[8,4]{1,0} fusion(%x), kind=kLoop, calls=%fused
  %gemm = (f32[8,4]{1,0}, s8[16]{0}) custom-call(%wide, %x), custom_call_target="g"
  %part = f32[8,4]{1,0} get-tuple-element(%gemm), index=0
  %loop = (s32[], f32[9,4]{1,0}, f32[4]{0}) while(%start), condition=%more, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %t = (f32[8,4], u8[0]) tuple(%part)
}
"""  # noqa: E501


def test_bytes_of_kernels_as_often_as_they_run() -> None:
    """Of the table that a loop updates it moves one row in, one out, and the new one."""
    kernels = hlo.Program(HLO).kernels()
    assert kernels == [128 + 64, 128 + 16 + 128 + 64, *3 * [16 + 4 + 16 + 16 + 16]]


def test_without_the_compilers_it_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "installed", lambda target: False)
    with pytest.raises(ValueError, match=r"for h100 and v5e are not installed: pip install -e"):
        accelerators.main(accelerators.Options())


def test_every_block_and_step_is_a_program_by_hand_and_by_autodiff() -> None:
    options = accelerators.Options(batch=1, rows=2)
    pairs = accelerators.both_programs(options, "bfloat16")
    assert sum(name.startswith("step: ") for name in pairs) == 6 and len(pairs) > 60
    for name in ("gelu", "conv 3x3 1->32, conv_1", "cross_entropy", "step: CNN, batch 4"):
        arguments, functions = pairs[name]()
        by_hand, autodiff = (jax.eval_shape(f, *arguments) for f in functions)
        assert jax.tree.map(jnp.shape, by_hand) == jax.tree.map(jnp.shape, autodiff)


def test_every_public_block_is_in_the_lab_or_says_why_not() -> None:
    public = {
        name
        for name in fnn.__all__
        if inspect.isfunction(maker := getattr(fnn, name))
        and maker.__annotations__.get("return") == "Block"
    }
    assert len(public) > 60
    rows = {case.name.split()[0] for case in accelerators.cases(accelerators.Options())}
    assert rows | block_cases.ELSEWHERE.keys() == public
    assert not rows & block_cases.ELSEWHERE.keys()


def test_ratios_and_what_is_not_known() -> None:
    fnn, other = lab.Figures(2e6, 0, None, None, 3, 0.5), lab.Figures(4e6, 10**6, 1.0, None, 4, 1)
    assert accelerators.compared(fnn, other) == [
        "2.0", "0.50", "0.0, 1.0", "-", "-", "3, 4", "0.5, 1.0",
    ]  # fmt: skip
