"""Checks a backward rule of your own.

The rule is what package.module:name names: a block; a function that makes one, which gets the
--arg values; a function with a jax.custom_vjp; or two functions, module:forward,backward.

--input gives the shape of an input and, after a colon, what to draw: 8,16 normal numbers;
8,16:0.1..0.9 floats between two numbers; 8:0..9 whole numbers, both ends included (labels);
8:bool. An empty shape is a scalar.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import os
import re
import sys
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from fnn.block import Block
from fnn.check import checks
from fnn.check.report import CheckError, Report


@dataclass
class Settings:
    """Options of a check."""

    input: tuple[str, ...] = ()
    """Inputs, in the order in which the rule takes them."""
    arg: tuple[str, ...] = ()
    """NAME=VALUE for the function that makes the block: a Python number, string, tuple; or
    module:name for an object, and module:name() for what it returns."""
    key: bool = False
    """Give the block a jax.random key."""
    dtype: Literal["float64", "float32"] | None = None
    """Dtype of the comparisons; by default the widest in which the rule runs."""
    seed: int = 0
    """Random seed for inputs and checks."""
    rtol: float | None = None
    """Relative error of a cotangent that is no mistake."""
    strict: tuple[str, ...] = ()
    """Properties whose notes are mistakes, too, such as float32, edges, kinks."""
    skip: tuple[str, ...] = ()
    """Properties to leave out."""
    quick: bool = False
    """Only the properties that find most mistakes."""
    seconds: float = 60.0
    """How long the check may take."""
    timed: bool = True
    """Leave time out of the property cost, so that a seed repeats the report."""


def run(target: str, settings: Settings) -> int:
    """Checks the rule and prints the report: 0 if it is right, 1 if it is wrong."""
    report = check(target, settings)
    try:
        print(report, flush=True)
    except BrokenPipeError:  # the verdict is the exit status all the same
        silence()
    return 0 if report.correct else 1


def silence() -> None:
    """Lets what is still printed go nowhere, after the reader of a pipe has left (``| head``)."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def check(target: str, settings: Settings) -> Report:
    """The report on the rule that ``target`` names.

    Raises:
      CheckError: there is no such rule, or the check could not be run.
    """
    if not settings.input:
        raise CheckError("give the shapes of the inputs, such as --input 8,16")
    rng = np.random.default_rng(settings.seed)
    inputs = [draw_input(text, rng) for text in settings.input]
    arguments = dict(parse_arg(text) for text in settings.arg)
    rule = resolve(target)
    options = dict[str, Any](
        seed=settings.seed, rtol=settings.rtol, strict=settings.strict, skip=settings.skip,
        quick=settings.quick, seconds=settings.seconds, timed=settings.timed,
        dtype=settings.dtype and np.dtype(settings.dtype),
    )  # fmt: skip
    if isinstance(rule, tuple) and not isinstance(rule, Block):  # a Block is a tuple, too
        return checks.pair(*rule, *inputs, **options)
    if isinstance(rule, (jax.custom_vjp, jax.custom_jvp)):
        return checks.function(rule, *inputs, **options)
    try:
        block = rule if isinstance(rule, Block) else make_block(target, rule, arguments)
    except MissingArguments as missing:  # perhaps it takes arrays: a custom rule may be inside
        try:
            return checks.function(rule, *inputs, **options)
        except CheckError as error:
            raise CheckError(
                f"{missing}: give them as --arg NAME=VALUE; as a function of the inputs: {error}"
            ) from error
    return checks.block(
        block,
        inputs[0] if len(inputs) == 1 else tuple(inputs),
        key=jax.random.key(settings.seed) if settings.key else None,
        **options,
    )


class MissingArguments(CheckError):
    """The factory needs arguments that were not given."""


def make_block(target: str, factory: Any, arguments: dict[str, Any]) -> Block:
    """The block that the factory makes."""
    if not callable(factory):
        raise CheckError(
            f"{target} is {type(factory).__name__}, needs to be a Block or a function that makes "
            "one"
        )
    try:
        block = factory(**arguments)
    except Exception as error:
        missing = isinstance(error, TypeError) and not arguments and "missing" in str(error)
        refusal = MissingArguments if missing else CheckError
        raise refusal(f"{target} raises {type(error).__name__}: {error}") from error
    if not isinstance(block, Block):
        raise CheckError(f"{target} returned {type(block).__name__}, needs to return a Block")
    return block


def resolve(target: str) -> Any:
    """The object that ``module:name`` names; a pair of them for ``module:one,two``."""
    module_name, _, names = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise CheckError(
            f"cannot import {module_name!r}: {error}; is it installed, or in this folder?"
        ) from error
    except Exception as error:
        raise CheckError(f"importing {module_name!r} raises {error!r}") from error

    def one(name: str) -> Any:
        value: Any = module
        for part in name.split("."):
            if not hasattr(value, part):
                close = difflib.get_close_matches(part, dir(value), n=1)
                hint = f"; did you mean {close[0]}" if close else ""
                raise CheckError(f"{module_name} has no {name!r}{hint}")
            value = getattr(value, part)
        return value

    if not names.strip():
        raise CheckError(f"{target!r} names no object: write package.module:name")
    parts = [one(name.strip()) for name in names.split(",")]
    if len(parts) > 2:
        raise CheckError(f"{target}: name one object, or a forward and a backward")
    return parts[0] if len(parts) == 1 else tuple(parts)


def parse_arg(text: str) -> tuple[str, Any]:
    """``features=32`` as ("features", 32)."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise CheckError(f"--arg {text!r} needs to be NAME=VALUE, such as features=32")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        pass
    if re.fullmatch(r"[\w.]+:[\w.]+(\(\))?", value):
        target = resolve(value.removesuffix("()"))
        return name, target() if value.endswith("()") else target
    return name, value


_SHAPE = re.compile(r"\s*(\d+(\s*,\s*\d+)*)?\s*,?\s*")


def draw_input(text: str, rng: np.random.Generator) -> np.ndarray:
    """Numbers for an input, described as in this module's docstring.

    >>> draw_input("4:0..2", np.random.default_rng(0))
    array([2, 1, 1, 0], dtype=int32)
    """
    shape_text, colon, kind = text.partition(":")
    if not _SHAPE.fullmatch(shape_text):
        raise CheckError(f"--input {text!r}: needs a shape such as 8,16, or 8:0..9 (labels)")
    shape = tuple(int(n) for n in re.findall(r"\d+", shape_text))
    if not colon:
        return rng.standard_normal(shape)
    if kind == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    low, _, high = kind.partition("..")
    try:
        if re.search(r"[.eE]", low + high):
            return rng.uniform(float(low), float(high), shape)
        return rng.integers(int(low), int(high) + 1, shape).astype(np.int32)
    except (ValueError, OverflowError):
        raise CheckError(
            f"--input {text!r}: after the colon it needs LOW..HIGH (0..9 or 0.1..0.9), or bool"
        ) from None
