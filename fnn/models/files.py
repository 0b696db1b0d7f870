"""Files of named arrays: ``.npz`` and ``.safetensors``, read with every fault refused.

safetensors is read here by hand: the format is a length, a JSON header and the arrays' bytes,
less to read than its package is to install, and the library then needs jax and numpy alone.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def read_arrays(path: str | os.PathLike[str]) -> dict[str, Array]:
    """The arrays of a ``.npz`` or ``.safetensors`` file by name, in the file's order.

    Raises:
      ValueError: another kind of file, or one that is truncated, malformed or empty; one line.
      OSError: the file cannot be read.
    """
    path = Path(path)
    readers = {".npz": _read_npz, ".safetensors": _read_safetensors}
    if path.suffix not in readers:
        hint = ""
        if path.suffix in (".pt", ".pth", ".bin"):
            hint = ": convert PyTorch's with safetensors.torch.save_file(state_dict, path)"
        raise ValueError(f"{path}: weights are read from .npz and .safetensors files{hint}")
    arrays = readers[path.suffix](path)
    if not arrays:
        raise ValueError(f"{path}: a file without arrays")
    return arrays


def _read_npz(path: Path) -> dict[str, Array]:
    with open(path, "rb") as file:  # by itself NumPy leaves a broken one open
        if file.read(2) != b"PK":
            raise ValueError(f"{path}: not an .npz file, which is a zip archive of arrays")
        file.seek(0)
        arrays = _arrays(path, file)
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # a member that is not .npy comes as bytes
            raise ValueError(f"{path}: {name} in the archive is not an array")
        arrays[name] = array.astype(array.dtype.newbyteorder("="), copy=False)
    return arrays


def _arrays(path: Path, file: BinaryIO) -> dict[str, Array]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            if len(set(archive.files)) != len(archive.files):
                raise ValueError("several arrays have the same name")
            return {name: archive[name] for name in archive.files}
    except (
        # What zipfile, zlib and NumPy raise for archives and headers that are not well-formed.
        zipfile.BadZipFile, zlib.error, struct.error, EOFError, KeyError, MemoryError, OSError,
        NotImplementedError, OverflowError, RuntimeError, SyntaxError, TypeError, ValueError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: not a whole, well-formed .npz file ({reason})") from error


# ---- safetensors -------------------------------------------------------------------------------

_DTYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
_LARGEST_HEADER = 100_000_000  # the format's own limit, in bytes


def _read_safetensors(path: Path) -> dict[str, Array]:
    """A little-endian uint64, that many bytes of JSON, and the arrays, end to end.

    The header is {name: {"dtype": "F32", "shape": [...], "data_offsets": [begin, end]}, ...};
    "__metadata__" may hold strings. The arrays cover all bytes after it, each byte once.
    """
    data = path.read_bytes()

    def refuse(found: str) -> NoReturn:
        found = " ".join(found.split())  # a name in the file may span lines; the message does not
        raise ValueError(f"{path}: not a whole, well-formed .safetensors file ({found})")

    if len(data) < 8:
        refuse(f"{len(data)} bytes, too few for the length of a header")
    length = int.from_bytes(data[:8], "little")
    if length > min(_LARGEST_HEADER, len(data) - 8):
        refuse(f"a header of {length} bytes in a file of {len(data)}")
    try:
        header = json.loads(data[8 : 8 + length].decode(), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        refuse(f"its header is not JSON: {error}")
    if not isinstance(header, dict):
        refuse("its header is not a JSON object")
    header.pop("__metadata__", None)

    body = memoryview(data)[8 + length :]
    arrays: dict[str, Array] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            refuse(f"{name} needs dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            refuse(f"{name} has dtype {dtype!r}; known are {', '.join(_DTYPES)}")
        if not _sizes(shape) or len(shape) > 32:
            refuse(f"{name} has shape {shape!r}")
        if not _sizes(offsets) or len(offsets) != 2:
            refuse(f"{name} has data_offsets {offsets!r}")
        begin, end = offsets
        needed = math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize
        if end - begin != needed:
            refuse(f"{name}, {dtype} of shape {shape}, needs {needed} bytes and has {end - begin}")
        if end > len(body):
            refuse(f"truncated: {name} ends at byte {end} of {len(body)}")
        arrays[name] = np.frombuffer(body[begin:end], _DTYPES[dtype]).reshape(shape)
        spans.append((begin, end, name))
    at = 0
    for begin, end, name in sorted(spans):
        if begin != at:
            kind = "overlaps the array before it" if begin < at else f"follows a gap at byte {at}"
            refuse(f"{name} {kind}")
        at = end
    if at != len(body):
        refuse(f"{len(body) - at} bytes after the last array")
    return arrays


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name is there twice")
    return table
