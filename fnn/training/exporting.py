"""What ``jax.export`` has to know of a training step."""

from __future__ import annotations

import contextlib
from typing import Any

import jax
from jax import export


def register_namedtuples(tree: Any) -> None:
    """Registers the types of the NamedTuples in a tree, such as the states of Optax's optimisers,
    with ``jax.export``, which writes no other ones to a file.

    By the name by which Python imports the type; one that is registered already stays as it is.

    >>> import collections
    >>> register_namedtuples({"a": [collections.namedtuple("Pair", "x y")(1, 2)]})
    """
    kinds = set()

    def note(node: Any) -> bool:
        if isinstance(node, tuple) and hasattr(node, "_fields"):
            kinds.add(type(node))
        return False

    jax.tree.leaves(tree, is_leaf=note)
    for kind in kinds:
        with contextlib.suppress(ValueError):  # the user has done so
            name = f"{kind.__module__}.{kind.__qualname__}"
            export.register_namedtuple_serialization(kind, serialized_name=name)
