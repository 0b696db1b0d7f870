"""Trained weights in files: read into a network's parameters by name, and written.

A file holds named arrays, ``.npz`` (NumPy's) or ``.safetensors``; a network's parameters are a
pytree whose leaves have paths: ``inception_3a/5x5_reduce/w``. Leaves and arrays must be the same by
name, shape and dtype: nothing is cast, broadcast, filled in or left out unless asked for.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from numpy.typing import NDArray

from fnn.arguments import checked
from fnn.block import Params
from fnn.models.files import read_arrays

Array = NDArray[Any]


@checked
def load_weights(
    path: str | os.PathLike[str],
    like: Params,
    *,
    names: Literal["auto", "fnn", "torch"] = "auto",
    drop: Sequence[str] = (),
) -> Params:
    """The parameters in a file, as a pytree like ``like``.

    Args:
      path: a ``.npz`` or ``.safetensors`` file (for which ``pip install safetensors``).
      like: ``jax.eval_shape(net.init, key, x)``: the structure, shapes and dtypes needed. Arrays
        work as well.
      names: those in the file: "fnn" for paths like ``conv1/7x7_s2/w``, "torch" for PyTorch's
        names and layouts (:func:`torch_names`), "auto" for PyTorch's if all end like PyTorch's
        (``.weight``, ``.bias``, ...).
      drop: parts of the file to leave out, by the beginning of their paths: ``("loss1", "loss2")``
        are the auxiliary classifiers. They may be absent.

    Returns:
      The pytree, of JAX arrays.

    Raises:
      ValueError: the file is truncated or malformed, or is another network's: arrays that are
        missing, extra, or of another shape or dtype are counted, and the first few named, with
        what was found and what is needed.
      ImportError: the file is ``.safetensors``, and the package is not installed.
      OSError: the file cannot be read.

    >>> import fnn, jax, os, tempfile
    >>> net, x = fnn.linear(2), jax.ShapeDtypeStruct((1, 3), "float32")
    >>> params = net.init(jax.random.key(0), x)
    >>> path = os.path.join(tempfile.mkdtemp(), "linear.npz")
    >>> fnn.models.save_weights(path, params)
    >>> like = jax.eval_shape(net.init, jax.random.key(0), x)
    >>> bool((fnn.models.load_weights(path, like)["w"] == params["w"]).all())
    True
    """
    arrays = read_arrays(path)
    needs = _by_path(like)
    unknown = not needs.keys() & arrays.keys()
    if names == "torch" or (names == "auto" and unknown and _are_torch_names(arrays)):
        arrays = torch_names(arrays)
    arrays = {name: a for name, a in arrays.items() if not _inside(name, drop)}
    if faults := _faults(arrays, needs):
        raise ValueError(f"{path}: {faults}")
    # A copy, as JAX may donate an array's memory, which must not be the file's. (jnp.array would
    # compile a program for each shape.)
    chosen = jax.tree_util.tree_map_with_path(lambda at, _: arrays[_name(at)], like)
    return jax.device_put(chosen, may_alias=False)


@checked
def save_weights(path: str | os.PathLike[str], params: Params) -> None:
    """Writes parameters as a ``.npz`` file, each leaf under its path.

    The file appears complete or not at all, and replaces an earlier one. Leaves that are None (of
    a gradient) are not written.

    Args:
      path: where to, ending in ``.npz``.
      params: a pytree of arrays.

    Raises:
      ValueError: the name does not end in ``.npz``, two leaves have one path, or a leaf is of a
        dtype that such a file cannot hold (bfloat16).
      OSError: the file cannot be written.

    >>> import os, tempfile, numpy as np
    >>> path = os.path.join(tempfile.mkdtemp(), "linear.npz")
    >>> save_weights(path, {"linear": {"w": np.ones((3, 2))}})
    >>> np.load(path)["linear/w"].shape
    (3, 2)
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"{path}: the suffix is {path.suffix!r}; only .npz is written")
    arrays = {name: np.asarray(leaf) for name, leaf in _by_path(params).items()}
    for name, array in arrays.items():
        # NumPy would write the dtypes of ml_dtypes as bytes without a meaning.
        if array.dtype.kind not in "biufc":
            raise ValueError(
                f"{path}: {name} is {array.dtype}, which .npz cannot hold; convert it to float32"
            )
    # In the same folder, as a rename is atomic only within one file system.
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


# ---- PyTorch's names ---------------------------------------------------------------------------

_TORCH_LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@checked
def torch_names(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """A PyTorch ``state_dict`` under fnn's names and in fnn's layouts.

    =========================  =====================  ==============================
    PyTorch                    fnn
    =========================  =====================  ==============================
    ``a.weight`` (O, I)        ``a/w`` (I, O)         linear
    ``a.weight`` (O, I, K)     ``a/w`` (K, I, O)      convolution, 1-dimensional
    ``a.weight`` (O, I, H, W)  ``a/w`` (H, W, I, O)   convolution
    ``a.bias``                 ``a/b``                of these
    ``a.weight`` (C,)          ``a/scale``            normalisation
    ``a.bias``                 ``a/bias``             of a normalisation
    ``a.running_mean``         ``a/statistics/mean``
    ``a.running_var``          ``a/statistics/var``
    ``a.num_batches_tracked``  not read               a count that fnn does not need
    =========================  =====================  ==============================

    So ``inception3a.branch2.0.conv.weight`` is ``inception3a/branch2/0/conv/w``. An embedding's
    weight looks like a linear layer's, and would be transposed.

    Args:
      arrays: the state_dict, as NumPy arrays.

    Returns:
      The same arrays, transposed where layouts differ.

    Raises:
      ValueError: a name or a number of dimensions that is not among these.

    >>> import numpy as np
    >>> {k: v.shape for k, v in torch_names({"conv1.weight": np.zeros((8, 3, 7, 5))}).items()}
    {'conv1/w': (7, 5, 3, 8)}
    """
    renamed: dict[str, Array] = {}
    for name, array in arrays.items():
        module, _, leaf = name.rpartition(".")
        weight = arrays.get(f"{module}.weight" if module else "weight")
        normalisation = weight is not None and weight.ndim == 1
        if leaf == "num_batches_tracked":
            continue
        if leaf == "weight" and 1 <= array.ndim <= 5:
            # (O, I, space...) -> (space..., I, O); of one axis, it stays as it is.
            array = np.transpose(array, (*range(2, array.ndim), 1, 0)) if array.ndim > 1 else array
            new = "scale" if normalisation else "w"
        elif leaf == "bias" and array.ndim == 1:
            new = "bias" if normalisation else "b"
        elif leaf in ("running_mean", "running_var") and array.ndim == 1:
            new = f"statistics/{leaf.removeprefix('running_')}"
        else:
            raise ValueError(
                f"{name} of shape {array.shape} is not a parameter of PyTorch's linear, "
                "convolution or normalisation layers"
            )
        renamed["/".join([*module.split("."), new]).lstrip("/")] = array
    return renamed


def _are_torch_names(names: Iterable[str]) -> bool:
    names = list(names)
    return bool(names) and all(n.rpartition(".")[2] in _TORCH_LEAVES for n in names)


# ---- misfits -----------------------------------------------------------------------------------


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _by_path(tree: Params) -> dict[str, Any]:
    leaves = [(_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    if len(dict(leaves)) != len(leaves):
        names = [name for name, _ in leaves]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"several leaves have the path {_few(twice)}: rename the blocks")
    return dict(leaves)


def _inside(name: str, parts: Sequence[str]) -> bool:
    return any(f"{name}/".startswith(f"{part.rstrip('/')}/") for part in parts)


def _faults(arrays: Mapping[str, Array], needs: Mapping[str, Any]) -> str:
    """Why these arrays are not the parameters that are needed, in one line; "" if they are."""
    missing = [name for name in needs if name not in arrays]
    extra = [name for name in arrays if name not in needs]
    shared = [name for name in needs if name in arrays]
    if not shared and arrays and needs:
        return (
            f"weights of another network: none of its {_count(extra)} ({_few(extra)}) is among the "
            f"{len(needs)} that this network needs ({_few(missing)})"
        )
    shapes, dtypes, permuted = [], [], False
    for name in shared:
        got, need = arrays[name], needs[name]
        if got.shape != need.shape:
            shapes.append(f"{name} got {got.shape}, needs {need.shape}")
            permuted |= sorted(got.shape) == sorted(need.shape)
        elif got.dtype != need.dtype:
            dtypes.append(f"{name} got {got.dtype}, needs {need.dtype}")
    parts = []
    if len(shared) < (len(arrays) + len(needs)) / 4 or len(shapes) > len(shared) / 2:
        parts.append("probably weights of another network")
    if missing:
        parts.append(f"{_count(missing)} missing: {_few(missing)}")
    if extra:
        parts.append(f"{_count(extra)} that this network does not have: {_few(extra)}")
    if shapes:
        parts.append(f"{_count(shapes)} of another shape: {_few(shapes)}")
    if permuted:
        parts.append(
            "(are the axes in another order? fnn's are (in, out), (height, width, in, out))"
        )
    if dtypes:
        parts.append(
            f"{_count(dtypes)} of another dtype: {_few(dtypes)}; convert them, or the parameters "
            "after loading"
        )
    return "; ".join(parts)


def _count(items: Sequence[str]) -> str:
    return f"{len(items)} array{'s' * (len(items) != 1)}"


def _few(items: Sequence[str], limit: int = 3) -> str:
    rest = len(items) - limit
    names = (" ".join(item.split()) for item in items[:limit])  # one line, whatever a file holds
    return ", ".join(names) + (f" and {rest} more" if rest > 0 else "")
