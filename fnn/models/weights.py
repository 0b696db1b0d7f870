"""Trained weights in files: read into a network's parameters by name, and written.

A file holds named arrays, ``.npz`` (NumPy's) or ``.safetensors``; a network's parameters are a
pytree whose leaves have paths: ``inception_3a/5x5_reduce/w``. Leaves and arrays must be the same by
name, shape and dtype: nothing is cast, broadcast, filled in or left out unless asked for.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from fnn.arguments import checked
from fnn.block import Params
from fnn.models.files import read_arrays, write_npz
from fnn.refusals import described, require_array, require_no_model, require_numbers

Array = NDArray[Any]


@checked
def load_weights(
    path: str | os.PathLike[str],
    like: Params,
    *,
    names: Literal["auto", "fnn", "torch"] = "auto",
    drop: Sequence[str] = (),
    flattened: Mapping[str, Sequence[int]] | None = None,
    embeddings: Sequence[str] | None = None,
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
      flattened, embeddings: of PyTorch's, what the file does not say: see :func:`torch_names`.

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
    require_no_model("load_weights", like, "like")  # before the file is looked for
    arrays, needs = read_arrays(path), _by_path(like)
    for name, need in needs.items():
        if not hasattr(need, "shape") or not hasattr(need, "dtype"):
            raise TypeError(
                f"load_weights: like holds a {type(need).__name__} at {name!r}, needs arrays or "
                "jax.ShapeDtypeStruct: jax.eval_shape(net.init, key, x)"
            )
    unknown, unsaid = not needs.keys() & arrays.keys(), ""
    if names == "torch" or (names == "auto" and unknown and _are_torch_names(arrays)):
        state = {n: a for n, a in arrays.items() if not _inside(n.replace(".", "/"), drop)}
        unsaid = _unsaid(state, flattened, embeddings)
        arrays = _renamed(state, flattened or {}, embeddings or ())
    elif flattened or embeddings:
        raise ValueError(f"{path}: flattened and embeddings are for PyTorch's names, not fnn's")
    arrays = {name: a for name, a in arrays.items() if not _inside(name, drop)}
    faults = _faults(arrays, needs) if arrays or not needs else "a file without arrays"
    if faults or unsaid:
        raise ValueError(f"{path}: {faults or unsaid}")
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
      ValueError: the name does not end in ``.npz``, two leaves have one path, or a leaf is no
        array or of a dtype that such a file cannot hold (bfloat16, a random key).
      OSError: the file cannot be written.

    >>> import os, tempfile, numpy as np
    >>> path = os.path.join(tempfile.mkdtemp(), "linear.npz")
    >>> save_weights(path, {"linear": {"w": np.ones((3, 2))}})
    >>> np.load(path)["linear/w"].shape
    (3, 2)
    """
    require_no_model("save_weights", params)
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"{path}: the suffix is {path.suffix!r}; only .npz is written, use it")
    arrays = {name: _writable(path, name, leaf) for name, leaf in _by_path(params).items()}
    # In the same folder, as a rename is atomic only within one file system.
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            write_npz(file, arrays)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _writable(path: Path, name: str, leaf: Any) -> Array:
    """The leaf as an array; refused if the file would not hold it as it is."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        raise ValueError(
            f"{path}: {name or 'params'} is {described(leaf)}, a random key; save "
            "jax.random.key_data(key)"
        )
    if np.ma.isMaskedArray(leaf):
        raise ValueError(f"{path}: {name} is a masked array; save its .filled(value)")
    array = np.asarray(leaf)
    # NumPy would write the dtypes of ml_dtypes as bytes without a meaning, and pickle objects.
    if dtype is None or array.dtype.kind not in "biufc":
        got = type(leaf).__name__ if dtype is None else array.dtype
        raise ValueError(
            f"{path}: {name} is {got}, which .npz cannot hold; convert it to an array of float32"
        )
    if "\0" in name or name != name.encode(errors="ignore").decode():
        # zipfile cuts a name at a null; half a surrogate pair is no text.
        raise ValueError(f"{path}: {name!r} cannot be a name in a file; rename it")
    return array


# ---- PyTorch's names ---------------------------------------------------------------------------

_TORCH_LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@checked
def torch_names(
    arrays: Mapping[str, Array],
    *,
    flattened: Mapping[str, Sequence[int]] | None = None,
    embeddings: Sequence[str] | None = None,
) -> dict[str, Array]:
    """A PyTorch ``state_dict`` under fnn's names and in fnn's layouts.

    =========================  =====================  ==============================
    PyTorch                    fnn
    =========================  =====================  ==============================
    ``a.weight`` (O, I)        ``a/w`` (I, O)         linear
    ``a.weight`` (V, F)        ``a/w`` (V, F)         embedding, if named as one
    ``a.weight`` (O, I, K)     ``a/w`` (K, I, O)      convolution, 1-dimensional
    ``a.weight`` (O, I, H, W)  ``a/w`` (H, W, I, O)   convolution, of I channels a group
    ``a.weight`` (I, O, H, W)  ``a/w`` (H, W, O, I)   transposed convolution, of O a group
    ``a.bias``                 ``a/b``                of these
    ``a.weight`` (C,)          ``a/scale``            normalisation
    ``a.bias``                 ``a/bias``             of a normalisation
    ``a.running_mean``         ``a/statistics/mean``
    ``a.running_var``          ``a/statistics/var``
    ``a.num_batches_tracked``  not read               a count that fnn does not need
    =========================  =====================  ==============================

    So ``inception3a.branch2.0.conv.weight`` is ``inception3a/branch2/0/conv/w``. Two things a
    state_dict does not say, and they are asked for where it matters.

    Args:
      arrays: the state_dict, as NumPy arrays.
      flattened: the linear layers that read a flattened image, by fnn's path, with the shape of
        that image: ``{"fc": (height, width, channels)}``, ``{}`` if there is none. PyTorch
        flattens (C, H, W) and fnn (H, W, C): the rows of ``w`` change places. Needed where there
        are convolutions and linear layers.
      embeddings: the paths of the embeddings, ``()`` if there is none. Needed where a weight may be
        either: it is square and has no bias.

    Returns:
      The same arrays, transposed where layouts differ.

    Raises:
      ValueError: a name or a number of dimensions that is not among these, two arrays with one
        path, or something that needs to be said.

    >>> import numpy as np
    >>> state = {"conv.weight": np.zeros((8, 3, 7, 5)), "fc.weight": np.zeros((10, 32))}
    >>> arrays = torch_names(state, flattened={"fc": (2, 2, 8)})
    >>> {name: a.shape for name, a in arrays.items()}
    {'conv/w': (7, 5, 3, 8), 'fc/w': (32, 10)}
    """
    for name, array in arrays.items():
        require_array("torch_names", str(name), array)
        require_numbers("torch_names", str(name), array)
    if unsaid := _unsaid(arrays, flattened, embeddings):
        raise ValueError(unsaid)
    return _renamed(arrays, flattened or {}, embeddings or ())


def _renamed(
    arrays: Mapping[str, Array], flattened: Mapping[str, Sequence[int]], embeddings: Sequence[str]
) -> dict[str, Array]:
    renamed: dict[str, Array] = {}
    for name, array in arrays.items():
        if not (path := _torch_path(arrays, name)):
            continue
        module = path.rpartition("/")[0]
        if path.endswith("w") and array.ndim > 1 and module not in embeddings:
            # (O, I, space...) -> (space..., I, O)
            array = np.transpose(array, (*range(2, array.ndim), 1, 0))
            if module in flattened:
                array = _channels_last(path, array, tuple(flattened[module]))
        if path in renamed:
            raise ValueError(f"two arrays have the path {path} under fnn's names")
        renamed[path] = array
    if strangers := [m for m in (*flattened, *embeddings) if f"{m}/w".lstrip("/") not in renamed]:
        raise ValueError(f"there is no weight of {_few(strangers)}; there are {_few([*renamed])}")
    return renamed


def _unsaid(
    arrays: Mapping[str, Array],
    flattened: Mapping[str, Sequence[int]] | None,
    embeddings: Sequence[str] | None,
) -> str:
    """What needs to be said of a state_dict, as it cannot be known from it; "" if it has been."""
    shapes = {
        module: a.shape
        for name, a in arrays.items()
        for module, _, leaf in [name.rpartition(".")]
        if leaf == "weight"
    }
    matrices = {module.replace(".", "/"): module for module in shapes if len(shapes[module]) == 2}
    if embeddings is None:
        for path, module in matrices.items():
            rows, columns = shapes[module]
            if rows == columns and f"{module}.bias".lstrip(".") not in arrays:
                return (
                    f"the weight of {path}, square and without a bias, may be a linear layer's, "
                    "which is transposed, or an embedding's, which is not: give the paths of the "
                    f"embeddings, embeddings=({path!r},), or embeddings=() if there is none"
                )
    linear = [path for path in matrices if path not in (embeddings or ())]
    if flattened is None and linear and any(len(shape) > 2 for shape in shapes.values()):
        return (
            f"{linear[0]} is a linear layer in a network with convolutions, and PyTorch flattens "
            "images channels first, fnn channels last: give the layers that read a flattened image "
            f"with its shape, flattened={{{linear[0]!r}: (height, width, channels)}}, or "
            "flattened={} if there is none"
        )
    return ""


def _torch_path(arrays: Mapping[str, Array], name: str) -> str:
    """fnn's path of an array of a state_dict, "" for one that fnn does not need."""
    array, (module, _, leaf) = arrays[name], name.rpartition(".")
    weight = arrays.get(f"{module}.weight" if module else "weight")
    normalisation = weight is not None and weight.ndim == 1
    if leaf == "num_batches_tracked":
        return ""
    if leaf == "weight" and 1 <= array.ndim <= 5:
        new = "scale" if normalisation else "w"
    elif leaf == "bias" and array.ndim == 1:
        new = "bias" if normalisation else "b"
    elif leaf in ("running_mean", "running_var") and array.ndim == 1:
        new = f"statistics/{leaf.removeprefix('running_')}"
    else:
        raise ValueError(
            f"{name} of shape {array.shape} is not a parameter of PyTorch's linear, "
            "convolution or normalisation layers: remove it, or convert it by hand"
        )
    return "/".join([*module.split("."), new]).lstrip("/")


def _channels_last(path: str, w: Array, image: tuple[int, ...]) -> Array:
    """w (C H W, O), whose rows are an image's numbers channels first, as (H W C, O)."""
    *space, channels = image
    if math.prod(image) != len(w):
        raise ValueError(
            f"{path} has {len(w)} rows, and a flattened image of (height, width, channels) {image} "
            f"has {math.prod(image)} numbers"
        )
    return np.moveaxis(w.reshape(channels, *space, -1), 0, -2).reshape(w.shape)


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
    if arrays and not needs:
        return "params hold nothing: give the parameters of the network that the file is of"
    if not shared and arrays:
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
        elif jax.dtypes.canonicalize_dtype(need.dtype) != need.dtype:
            dtypes.append(f"{name} is {need.dtype}, which JAX has switched off (jax_enable_x64)")
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
            "(are the axes in another order? fnn's are (in, out), (height, width, in, out), of an "
            "embedding (vocabulary, features): name PyTorch's embeddings in embeddings=)"
        )
    if dtypes:
        parts.append(
            f"{_count(dtypes)} of another dtype: {_few(dtypes)}; convert them, or the parameters "
            "after loading"
        )
    if parts and not (permuted or dtypes):
        parts.append("needs the parameters of the network that the file is of")
    return "; ".join(parts)


def _count(items: Sequence[str]) -> str:
    return f"{len(items)} array{'s' * (len(items) != 1)}"


def _few(items: Sequence[str], limit: int = 3) -> str:
    rest = len(items) - limit
    names = (" ".join(item.split()) for item in items[:limit])  # one line, whatever a file holds
    return ", ".join(names) + (f" and {rest} more" if rest > 0 else "")
