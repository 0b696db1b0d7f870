"""Several processes that train together: what they have to agree on, or wait for ever."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.experimental import multihost_utils

from fnn.refusals import described


def largest(number: int) -> int:
    """The largest number of all processes, which all have to call this.

    >>> largest(2)
    2
    """
    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def require_same(name: str, facts: Mapping[str, Any]) -> None:
    """Refuses processes that do not do the same.

    Args:
      name: of the function, for errors.
      facts: what this process does, by name, as JSON has it.
    """
    text = json.dumps(facts, default=str).encode()
    every = [json.loads(other) for other in _everybodys(text)]
    for process, other in enumerate(every):
        for fact in every[0] | other:
            first, got = every[0].get(fact), other.get(fact)
            if first != got:
                raise ValueError(
                    f"{name}: {fact} is {described(got)} in process {process} and "
                    f"{described(first)} in process 0; run the same code with the same data and "
                    "settings in every process: each then trains on its own share"
                )


def _everybodys(text: bytes) -> list[bytes]:
    """What each process calls this with."""
    padded = np.zeros(largest(len(text)), np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(text)))
    texts = multihost_utils.process_allgather(padded)
    return [bytes(own[:length]) for own, length in zip(texts, lengths, strict=True)]
