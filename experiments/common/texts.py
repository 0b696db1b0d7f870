"""Texts that language models learn from: found or downloaded, checked, as ids of characters."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.common.idx import cache, fault


class _Source(NamedTuple):
    folder: str
    file: str
    url: str
    sha256: str


SOURCES = {
    "shakespeare": _Source(
        "tinyshakespeare", "input.txt",
        "https://raw.githubusercontent.com/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e"
        "/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    "names": _Source(
        "names", "names.txt",
        "https://raw.githubusercontent.com/karpathy/makemore/988aa59/names.txt",
        "0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d",
    ),
}  # fmt: skip


def text(name: str) -> str:
    """A text by its name: from ``$FNN_DATA``, the user's cache folder, or its public home.

    Raises:
      DataError: it is in none of them, or its bytes are not those that are known.
    """
    source = SOURCES[name]
    roots = [Path(root) for root in (os.environ.get("FNN_DATA"),) if root]
    folders = [*(root / source.folder for root in roots), cache(source.folder)]
    path = next((f / source.file for f in folders if (f / source.file).exists()), None)
    if path is None:
        import pooch

        try:
            found = pooch.retrieve(source.url, source.sha256, source.file, cache(source.folder))
        except OSError as error:
            raise fault(
                f"{source.folder}/{source.file}", f"no such file, and no way to download ({error})",
                "the file", f"connect to the network, or put it into a folder {source.folder}/ and "
                "set FNN_DATA to its parent",
            ) from error  # fmt: skip
        path = Path(found)
    data = path.read_bytes()
    got = hashlib.sha256(data).hexdigest()
    if got != source.sha256:
        raise fault(
            path, f"SHA-256 {got}", f"SHA-256 {source.sha256}", f"take it from {source.url}"
        )
    return data.decode("utf-8")


class Alphabet(NamedTuple):
    """The characters of a text, sorted; a character's id is its place among them."""

    characters: str

    @classmethod
    def of(cls, written: str) -> Alphabet:
        return cls("".join(sorted(set(written))))

    def ids(self, written: str) -> np.ndarray:
        places = {character: i for i, character in enumerate(self.characters)}
        return np.array([places[character] for character in written], np.int32)

    def written(self, ids: np.ndarray) -> str:
        return "".join(self.characters[i] for i in ids)
