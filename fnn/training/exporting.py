"""Training steps in files: what ``jax.export`` has to know to write and to read them."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
from pathlib import Path
from typing import Any

import jax
from jax import export

from fnn.refusals import described

UNKNOWN = re.compile(r"unregistered type `([\w.]+)\.(\w+)`")  # in JAX's refusal


def register_namedtuples(tree: Any) -> None:
    """Registers the types of the NamedTuples in a tree, such as the states of Optax's optimisers,
    with ``jax.export``, which writes no other ones to a file.

    By the name by which Python imports the type; one that is registered already stays as it is.

    >>> import collections
    >>> register_namedtuples({"a": [collections.namedtuple("Pair", "x y")(1, 2)]})
    """
    kinds = set()

    def note(node: Any) -> bool:
        if _is_namedtuple(type(node)):
            kinds.add(type(node))
        return False

    jax.tree.leaves(tree, is_leaf=note)
    for kind in kinds:
        _register(kind)


def load_step(file: os.PathLike[str] | str | bytes | bytearray) -> export.Exported:
    """Reads a training step that ``jax.export`` has written, whatever its optimiser.

    As ``jax.export.deserialize``, which refuses states of Optax where nothing has registered their
    types: these are NamedTuples, which a step is written with by the names by which Python imports
    them (see :func:`~fnn.make_step`). So they are imported. Read only files that you trust.

    Args:
      file: its path, or its bytes: ``exported.serialize()``.

    Returns:
      The ``jax.export.Exported``: its ``call(params, state, x, target)`` is the step.

    Raises:
      TypeError: what was given is neither a path nor bytes.
      OSError: there is no such file, or it cannot be read.
      ValueError: the file is not a whole one of ``jax.export``'s, or holds types that are not found
        or no NamedTuples.
      ModuleNotFoundError: there is no flatbuffers, which JAX reads such files with.

    >>> import fnn, jax, jax.numpy as jnp
    >>> net, optimizer, x = fnn.linear(1), fnn.adam(0.1), jnp.ones((4, 2))
    >>> step = fnn.make_step(net, fnn.squared_error(), optimizer)
    >>> params = net.init(jax.random.key(0), x)
    >>> exported = jax.export.export(step)(params, optimizer.init(params), x, x[:, :1])
    >>> # fnn.load_step(exported.serialize()).call is the same function, bit for bit
    """
    if not isinstance(file, (str, os.PathLike, bytes, bytearray)):
        raise TypeError(
            f"load_step: file is {described(file)}, needs a path, or the bytes that "
            "exported.serialize() returned"
        )
    data = bytearray(file if isinstance(file, (bytes, bytearray)) else Path(file).read_bytes())
    while True:
        try:
            return export.deserialize(data)
        except ImportError:
            raise
        except Exception as error:
            found = UNKNOWN.search(str(error))
            kind = found and _imported(*found.groups())
            if not kind or not _register(kind):
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise ValueError(
                    f"load_step: what was given is not a whole program of jax.export's ({reason}); "
                    "give what exported.serialize() returned, or the path of a file of that"
                ) from error


def _imported(module: str, name: str) -> type | None:
    """A NamedTuple by the name by which Python imports it; None where there is none."""
    with contextlib.suppress(ImportError, AttributeError):
        kind = getattr(importlib.import_module(module), name)
        return kind if _is_namedtuple(kind) else None
    return None


def _is_namedtuple(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")


def _register(kind: type) -> bool:
    """Whether that was new: one that is registered already, by the user say, stays as it is."""
    try:
        name = f"{kind.__module__}.{kind.__qualname__}"
        export.register_namedtuple_serialization(kind, serialized_name=name)
    except ValueError:
        return False
    return True
