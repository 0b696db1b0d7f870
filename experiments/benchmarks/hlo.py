"""The bytes that the kernels of a compiled program read and write, from XLA's text of it."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

# What starts no kernel and moves nothing.
FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all", "iota"}
SIZES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2,
         "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}  # fmt: skip
LINE = re.compile(r"^\s*(ROOT )?(%?[\w.-]+) = (.*?) ([a-z][\w-]*)\(([^)]*)\)(.*)")
HEAD = re.compile(r"^(ENTRY )?(%?[\w.-]+) \(.*\{$")
ARRAY = re.compile(r"([a-z]+\d*)\[([\d,]*)\]")
TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')


class Instruction(NamedTuple):
    """A line: ``%name = result operation(operands), more``."""

    name: str
    size: float
    operation: str
    operands: list[str]
    more: str
    root: bool


class Program:
    """A compiled program's computations."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        inside: dict[str, Instruction] = {}
        for line in text.splitlines():
            if head := HEAD.match(line):
                inside = self.computations.setdefault(head[2], {})
                self.entry = head[2] if head[1] else self.entry
            elif found := LINE.match(line):
                root, name, result, operation, operands, more = found.groups()
                named = [re.sub(r"/\*.*?\*/", "", part).strip() for part in operands.split(",")]
                size = sum(map(size_of, ARRAY.findall(result)))
                inside[name] = Instruction(name, size, operation, named, more, bool(root))

    def kernels(self, computation: str = "") -> list[float]:
        """The bytes of each kernel that is started, as often as it is.

        A loop counts as often as it turns, if the program says how often. Of what a kernel only
        slices or updates in place, the slice counts.

        >>> Program('''
        ... ENTRY %main (x: f32[4]) -> f32[4] {
        ...   %x = f32[4]{0} parameter(0)
        ...   ROOT %y = f32[4]{0} negate(%x)
        ... }''').kernels()
        [32.0]
        """
        inside = self.computations[computation or self.entry]
        kernels: list[float] = []
        for line in inside.values():
            if line.operation in FREE or line.operation.endswith("-done"):
                continue
            called = self._called(line)
            if line.operation == "while":
                turns = int(found[1]) if (found := TRIPS.search(line.more)) else 1
                kernels += self.kernels(called[-1]) * turns
            elif line.operation in ("conditional", "call"):
                kernels += max((self.kernels(name) for name in called), key=sum)
            elif line.operation == "fusion":
                kernels.append(self._fused(called[0], [inside.get(n) for n in line.operands]))
            else:
                kernels.append(_plain(line, inside))
        return kernels

    def _called(self, line: Instruction) -> list[str]:
        """The computations that a line names, a loop's body last."""
        names = re.findall(r"%[\w.-]+", line.more.split("metadata=")[0])
        body = re.findall(r"body=(%[\w.-]+)", line.more)
        return [name for name in names if name in self.computations and name not in body] + body

    def _fused(self, computation: str, operands: list[Instruction | None]) -> float:
        inside = self.computations[computation]
        total = 0.0
        for line in inside.values():
            if line.operation == "parameter" and (given := operands[int(line.operands[0])]):
                total += _read(line.name, given.size, inside)
            if line.root:
                several = line.operation == "tuple"
                results = [inside[name] for name in line.operands] if several else [line]
                total += sum(_written(result, inside) for result in results)
        return total


def _read(name: str, size: float, inside: dict[str, Instruction]) -> float:
    """What is read of an array of a fused computation."""
    read = 0.0
    for line in inside.values():
        if name not in line.operands:
            continue
        if line.operation == "bitcast":
            read += _read(line.name, size, inside)
        elif line.operation == "dynamic-slice" and line.operands[0] == name:
            read += line.size
        elif line.operation != "dynamic-update-slice" or line.operands[0] != name:
            return size
    return min(read, size)


def _written(line: Instruction, inside: dict[str, Instruction]) -> float:
    """What is written of a result of a fused computation."""
    while line.operation == "bitcast":
        line = inside[line.operands[0]]
    if line.operation == "dynamic-update-slice":
        return inside[line.operands[1]].size
    return line.size


def _plain(line: Instruction, inside: dict[str, Instruction]) -> float:
    """What a kernel of one operation moves."""
    if line.operation == "dynamic-slice":
        return 2 * line.size
    if line.operation == "dynamic-update-slice":
        return 2 * inside[line.operands[1]].size
    return line.size + sum(inside[name].size for name in line.operands if name in inside)


def size_of(array: tuple[str, str]) -> float:
    """Bytes of an array, as ``ARRAY`` finds it in a program."""
    dtype, axes = array
    return SIZES.get(dtype, 0) * float(math.prod(int(n) for n in axes.split(",") if n))
