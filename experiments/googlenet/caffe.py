"""Reads the weights in a ``.caffemodel``, which is one message in Protocol Buffers' wire format.

A message is a sequence of fields, each a varint (its number, and how it is coded) and a value.
The numbers of the fields are those of Caffe's ``caffe.proto``: layers are written in two ways.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from experiments.common.idx import DataError

LAYERS = {2: (4, 6), 100: (1, 7)}  # field of a layer: those of its name and its arrays in it
SIZES, DATA, SHAPE = (1, 2, 3, 4), 5, 7  # of an array: its four sizes, as they were; and now
FIXED = {1: 8, 5: 4}  # bytes of a value, by how it is coded


def read_caffemodel(path: Path) -> dict[str, np.ndarray]:
    """The parameters by their layer: ``conv1/7x7_s2/w``, (H, W, I, O), ``.../b``; classifiers' are
    (I, O).

    Raises:
      DataError: it is no such file.
    """
    arrays = dict[str, np.ndarray]()
    try:
        for number, layer in _fields(memoryview(path.read_bytes())):
            if number not in LAYERS or isinstance(layer, int):
                continue
            name_field, blob_field = LAYERS[number]
            parts = [*_fields(layer)]
            name = bytes(next(_inside(parts, name_field))).decode()
            blobs = [_array(blob) for blob in _inside(parts, blob_field)]
            arrays |= {f"{name}/{leaf}": a for leaf, a in zip("wb", blobs, strict=False)}
    except (IndexError, StopIteration, UnicodeDecodeError, ValueError) as error:
        raise DataError(f"{path}: not a .caffemodel, or cut off; download it again") from error
    if not arrays:
        raise DataError(f"{path}: a .caffemodel without any weights; download it again")
    return arrays


def _inside(fields: Iterable[tuple[int, int | memoryview]], number: int) -> Iterator[memoryview]:
    """What is in the fields of one number."""
    return (value for n, value in fields if n == number and isinstance(value, memoryview))


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of every field: whole numbers, and bytes for all else."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, coding = tag >> 3, tag & 7
        if coding == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        size = FIXED.get(coding)
        if coding == 2:
            size, at = _varint(message, at)
        if size is None or at + size > len(message):
            raise ValueError("not a field")
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A whole number in groups of seven bits, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _array(blob: memoryview) -> np.ndarray:
    """A parameter, in fnn's order of axes."""
    fields = [*_fields(blob)]
    numbers = np.frombuffer(b"".join(_inside(fields, DATA)), "<f4")
    shape = tuple(v for n, v in fields if n in SIZES and isinstance(v, int))
    for value in _inside(fields, SHAPE):
        shape = _varints(next(_inside(_fields(value), 1)))
    if math.prod(shape) != numbers.size:
        raise ValueError("not the shape of its numbers")
    if len(shape) == 4 and shape[:2] == (1, 1):  # a matrix or a vector, in four axes
        shape = shape[3:] if shape[2] == 1 else shape[2:]
    return numbers.reshape(shape).transpose((2, 3, 1, 0) if len(shape) == 4 else None)


def _varints(packed: memoryview) -> tuple[int, ...]:
    values, at = [], 0
    while at < len(packed):
        value, at = _varint(packed, at)
        values.append(value)
    return tuple(values)
