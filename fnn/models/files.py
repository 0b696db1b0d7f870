"""Files of named arrays, ``.npz`` and ``.safetensors``; broken ones are refused in one line."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# What zipfile, zlib, NumPy and safetensors raise for files that are not well-formed.
MALFORMED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


def read_arrays(path: str | os.PathLike[str]) -> dict[str, Array]:
    """The arrays of a ``.npz`` or ``.safetensors`` file by name, in the file's order.

    Raises:
      ValueError: another kind of file, or one that is truncated or malformed; one line.
      ImportError: safetensors is not installed.
      OSError: the file cannot be read.
    """
    path = Path(path)
    readers = {".npz": _read_npz, ".safetensors": _read_safetensors}
    if path.suffix not in readers:
        hint = ""
        if path.suffix in (".pt", ".pth", ".bin"):
            hint = ": convert PyTorch's with safetensors.torch.save_file(state_dict, path)"
        raise ValueError(
            f"{path}: weights are read from .npz and .safetensors files, give one{hint}"
        )
    return readers[path.suffix](path)


def write_npz(file: BinaryIO, arrays: Mapping[str, Array]) -> None:
    """Writes arrays as ``numpy.savez`` does, of which some names are arguments ("file")."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _read_npz(path: Path) -> dict[str, Array]:
    with open(path, "rb") as file:  # NumPy would leave a broken file open
        if file.read(2) != b"PK":
            raise ValueError(f"{path}: not an .npz file, which is a zip archive of arrays")
        file.seek(0)
        arrays = _arrays(path, file)
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # a member that is not .npy is read as bytes
            raise ValueError(f"{path}: {name} in the archive is not an array")
        arrays[name] = array.astype(array.dtype.newbyteorder("="), copy=False)
    return arrays


def _arrays(path: Path, file: BinaryIO) -> dict[str, Array]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            # Members by their own names: "w.npy.npy" holds w.npy, not w.
            members = archive.zip.namelist()
            if len(set(members)) != len(members):
                raise ValueError("several arrays have the same name")
            return {name.removesuffix(".npy"): archive[name] for name in members}
    except (OSError, *MALFORMED) as error:
        raise _not_well_formed(path, error) from error


def _read_safetensors(path: Path) -> dict[str, Array]:
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError as error:
        raise ImportError(
            f"{path}: reading .safetensors needs its package: pip install safetensors"
        ) from error
    try:
        return load_file(path)
    except AttributeError as error:  # safetensors looks the dtype up in NumPy
        raise ValueError(f"{path}: an array has a dtype that is not NumPy's ({error})") from error
    except (SafetensorError, *MALFORMED) as error:
        raise _not_well_formed(path, error) from error


def _not_well_formed(path: Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).split()) or type(error).__name__  # one line, whatever it holds
    return ValueError(f"{path}: not a whole, well-formed {path.suffix} file ({reason})")
