"""Weights in files: read by name into parameters, and every fault named in one line."""

import json
import struct
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.models import load_weights, save_weights, torch_names

NET = fnn.serial(conv=fnn.conv(4, 3), act=fnn.relu(), flat=fnn.flatten(), out=fnn.linear(5))
X = jax.ShapeDtypeStruct((1, 4, 4, 2), jnp.float32)
LIKE = jax.eval_shape(NET.init, jax.random.key(0), X)


def params() -> Any:
    return NET.init(jax.random.key(0), X)


def arrays() -> dict[str, np.ndarray]:
    return {f"{b}/{n}": np.array(a) for b, leaves in params().items() for n, a in leaves.items()}


CODES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int32": "I32"}


def safetensors(named: Mapping[str, np.ndarray], **changes: Any) -> bytes:
    """The file, written independently of the reader; ``changes`` replace a header's entries."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, array in named.items():
        end = len(body) + array.nbytes
        header[name] = {
            "dtype": CODES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [len(body), end],
        }
        body += array.tobytes()
    text = json.dumps(header | changes).encode()
    return struct.pack("<Q", len(text)) + text + body


def same(got: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert jax.tree.map(lambda a: a.dtype, got) == jax.tree.map(lambda a: a.dtype, expected)


def refused(path: Path, *parts: str, like: Any = LIKE, **options: Any) -> str:
    with pytest.raises(ValueError) as caught:
        load_weights(path, like, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    for part in parts:
        assert part in message, f"{part!r} not in {message!r}"
    return message


def test_a_file_for_a_network_without_parameters_is_refused(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.npz", {"w": np.ones(3)})
    assert "params hold nothing" in refused(tmp_path / "w.npz", like={})


# ---- what is read and written ------------------------------------------------------------------


def test_written_and_read_again(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.npz", params())
    same(load_weights(tmp_path / "w.npz", LIKE), params())
    save_weights(tmp_path / "w.npz", jax.tree.map(lambda a: a + 1, params()))  # in its place
    same(load_weights(tmp_path / "w.npz", params()), jax.tree.map(lambda a: a + 1, params()))
    assert [p.name for p in tmp_path.iterdir()] == ["w.npz"]


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(safetensors(arrays()))
    same(load_weights(path, LIKE), params())
    like = {"a": jax.ShapeDtypeStruct((), jnp.bfloat16), "b": jax.ShapeDtypeStruct((0, 3), "int32")}
    path.write_bytes(
        safetensors({"a": np.array(1.5, jnp.bfloat16), "b": np.zeros((0, 3), "int32")})
    )
    assert float(load_weights(path, like)["a"]) == 1.5


def test_big_endian_and_fortran_order_are_the_same_numbers(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "w.npz", **{k: np.asfortranarray(a).astype(">f4") for k, a in arrays().items()}
    )
    same(load_weights(tmp_path / "w.npz", LIKE), params())


def test_parts_that_are_not_wanted(tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    np.savez(path, **arrays(), **{"loss1/w": np.zeros(2), "loss1/fc/b": np.zeros(1)})
    refused(path, "2 arrays that this network does not have: loss1/w, loss1/fc/b")
    same(load_weights(path, LIKE, drop=("loss1", "loss2")), params())
    refused(path, "2 arrays that", drop=("los", "oss1"))


class Pair(NamedTuple):
    left: Any
    right: Any


ONE = np.arange(3, dtype=np.float32)
TREES: dict[str, Any] = {
    "numpy#5243": {"allow_pickle": ONE, "file": ONE + 1, "args": ONE + 2, "kwds": ONE + 3},
    "suffixes": {"w": ONE, "w.npy": ONE + 1, "w.npy.npy": ONE + 2, ".npy": ONE + 3},
    "PyTorch's words": {"weight": ONE, "a.weight": ONE + 1, "bias": ONE + 2},
    "an array": ONE,
    "nothing": {},
    "empty parts": {"a": {}, "b": [], "c": (), "w": ONE},
    "keys that are no text": {3: ONE, 10: {2: ONE + 1}},
    "sequences": [ONE, (ONE + 1, [ONE + 2]), Pair(ONE + 3, {"w": ONE + 4})],
    "no axes": {"a": np.float32(3), "b": np.array(True), "c": np.zeros((0, 3), np.int8)},
    "dtypes": {t: np.ones(2, t) for t in ("float16", "int64", "uint8", "bool", "complex64")},
    "letters": {
        "gewöhnlich": ONE,
        "two words": ONE + 1,
        "层": ONE + 2,
        "\\": ONE + 3,
        "..": ONE,
        "a\nb\u200b": ONE,
    },
    "order": {"w": np.asfortranarray(np.arange(6.0).reshape(2, 3))},
}


@pytest.mark.parametrize("name", TREES)
def test_every_tree_is_read_as_it_was_written(name: str, tmp_path: Path) -> None:
    tree = TREES[name]
    save_weights(tmp_path / "w.npz", tree)
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)
    got = load_weights(tmp_path / "w.npz", like)
    same(got, tree)
    assert jax.tree.structure(got) == jax.tree.structure(tree)
    with np.load(tmp_path / "w.npz") as archive:  # NumPy reads it, too
        sizes = [archive[file].size for file in archive.files]
    assert sum(sizes) == sum(leaf.size for leaf in jax.tree.leaves(tree))


UNWRITABLE: dict[str, tuple[Any, str]] = {
    "bfloat16": ({"conv": {"w": jnp.zeros(2, jnp.bfloat16)}}, "conv/w is bfloat16, which .npz can"),
    "int4": ({"w": jnp.zeros(2, jnp.int4)}, "w is int4, which .npz cannot hold"),
    "a key": (
        {"key": jax.random.key(0)},
        r"key is key<fry> of shape \(\), a random key; save jax.random.key_data\(key\)",
    ),
    "a number": ({"w": 3.0}, "w is float, which .npz cannot hold; convert it to an array"),
    "text": ({"w": "relu"}, "w is str, which"),
    "names": ({"w": np.array(["relu"])}, "w is <U4, which"),
    "objects": ({"w": np.array([None])}, "w is object, which"),
    "a mask": ({"w": np.ma.masked_array(ONE, ONE > 1)}, "w is a masked array"),
    "null": ({"a\0b": ONE}, r"'a\\x00b' cannot be a name in a file"),
    "half a character": ({"\ud800": ONE}, r"'\\ud800' cannot be a name in a file"),
    "one path twice": ({"a": {"b": ONE}, "a/b": ONE}, "several leaves have the path a/b"),
}


@pytest.mark.parametrize("name", UNWRITABLE)
def test_what_npz_cannot_hold_is_not_written(name: str, tmp_path: Path) -> None:
    tree, message = UNWRITABLE[name]
    with pytest.raises(ValueError, match=message):
        save_weights(tmp_path / "w.npz", tree)
    assert not list(tmp_path.iterdir())


def test_only_npz_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"only .npz is written"):
        save_weights(tmp_path / "w.safetensors", {})


def test_what_is_needed_has_shapes_and_dtypes_that_jax_has(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.npz", {"a": np.ones(2), "b": np.ones(2)})
    with pytest.raises(TypeError, match=r"like holds a float at 'b', needs arrays or"):
        load_weights(tmp_path / "w.npz", {"a": np.ones(2), "b": 1.0})
    with jax.enable_x64(False):
        refused(tmp_path / "w.npz", "a is float64, which JAX has switched off", "jax_enable_x64",
                like={"a": np.ones(2), "b": np.ones(2)})  # fmt: skip


# ---- PyTorch's names ---------------------------------------------------------------------------


def to_torch(named: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """fnn's arrays as a PyTorch state_dict, written independently of the reader."""
    ends = {"scale": "weight", "bias": "bias", "w": "weight", "b": "bias"}
    state = {}
    for name, leaf in named.items():
        name = name.replace("statistics/", "running_")
        module, _, end = name.rpartition("/")
        array = np.asarray(leaf)
        if end == "w":
            array = array.transpose((3, 2, 0, 1)) if array.ndim == 4 else array.T
        state[f"{module.replace('/', '.')}.{ends.get(end, end)}"] = np.ascontiguousarray(array)
        if end == "running_mean":
            state[f"{module.replace('/', '.')}.num_batches_tracked"] = np.array(7)
    return state


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_torch_names_of_googlenet(tmp_path: Path, suffix: str) -> None:
    net = fnn.models.googlenet_batch_norm()
    like = jax.eval_shape(
        net.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), "float32")
    )
    rng = np.random.default_rng(0)
    expected = jax.tree.map(lambda a: rng.random(a.shape, np.float32), like)
    flat = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(expected)
    }
    state = to_torch(flat)
    assert state["inception3a.branch2.0.conv.weight"].shape == (96, 192, 1, 1)
    assert state["fc.weight"].shape == (1000, 1024)
    # torchvision's file also has auxiliary heads.
    state |= {
        "aux1.fc1.weight": np.zeros((3, 2), "float32"),
        "aux1.fc1.bias": np.zeros(3, "float32"),
    }
    path = tmp_path / f"w.{suffix}"
    if suffix == "npz":
        np.savez(path, **state)  # type: ignore[arg-type]
    else:
        path.write_bytes(safetensors({k: v for k, v in state.items() if v.dtype.name in CODES}))
    got = load_weights(path, like, drop=("aux1", "aux2"), flattened={})
    same(got, jax.tree.map(jnp.asarray, expected))
    refused(path, "fc is a linear layer in a network with", like=like, drop=("aux1", "aux2"))
    refused(path, "2 arrays that this network does not have: aux1/fc1/w, aux1/fc1/b", like=like)
    refused(path, "weights of another network: none of its", like=like, names="fnn")
    refused(path, "weights of another network: none of its")


def test_torch_names_at_the_top_and_unknown_ones() -> None:
    assert set(torch_names({"weight": np.zeros((2, 3)), "bias": np.zeros(2)})) == {"w", "b"}
    one = torch_names({"a.weight": np.arange(24).reshape(2, 3, 4)})["a/w"]
    assert one.shape == (4, 3, 2) and one[1, 2, 0] == 9
    with pytest.raises(ValueError, match=r"lstm.weight_ih_l0 of shape"):
        torch_names({"lstm.weight_ih_l0": np.zeros((2, 2))})


def torch_forward(state: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Conv2d(padding=1, groups), Flatten and Linear of PyTorch, for x (B, C, H, W), written out."""
    w, groups = state["c.weight"], x.shape[1] // state["c.weight"].shape[1]
    x, of = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), len(w) // groups
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))  # (B, C, H, W, 3, 3)
    parts = [
        np.einsum("bihwkl,oikl->bohw", part, w[g * of : (g + 1) * of])
        for g, part in enumerate(np.split(windows, groups, 1))
    ]
    y = np.concatenate(parts, 1) + state["c.bias"][:, None, None]
    return y.reshape(len(y), -1) @ state["o.weight"].T + state["o.bias"]


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (2, 1), (4, 2)])
def test_rows_after_a_flatten_change_places(tmp_path: Path, channels: int, groups: int) -> None:
    """nn-transfer#16: PyTorch flattens images of (C, H, W)."""
    rng, path = np.random.default_rng(0), tmp_path / "t.npz"
    shapes = {"c.weight": (4, channels // groups, 3, 3), "c.bias": (4,), "o.weight": (3, 120)}
    state = {name: rng.normal(size=shape) for name, shape in (shapes | {"o.bias": (3,)}).items()}
    np.savez(path, **state)  # type: ignore[arg-type]
    x = rng.normal(size=(2, channels, 6, 5))
    net = fnn.serial(c=fnn.conv(4, 3, groups=groups), f=fnn.flatten(), o=fnn.linear(3))
    image = jnp.asarray(x.transpose(0, 2, 3, 1))
    like = jax.eval_shape(net.init, jax.random.key(0), image)
    params = load_weights(path, like, flattened={"o": (6, 5, 4)})
    np.testing.assert_allclose(net.forward(params, image)[0], torch_forward(state, x), rtol=1e-12)
    assert np.abs(net.forward(load_weights(path, like, flattened={}), image)[0]
                  - torch_forward(state, x)).max() > 0.1  # fmt: skip
    refused(path, "o is a linear layer in a network with convolutions",
            "flattened={'o': (height, width, channels)}", like=like)  # fmt: skip
    wrong = {
        "o/w has 120 rows, and a flattened image": {"o": (6, 5, 3)},
        "there is no weight of fc; there are c/w, c/b, o/w and 1 more": {"fc": (6, 5, 4)},
    }
    for message, flattened in wrong.items():
        with pytest.raises(ValueError, match=message):
            load_weights(path, like, flattened=flattened)


def test_embeddings_are_not_transposed(tmp_path: Path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "t.npz"
    state = {"e.weight": rng.normal(size=(7, 4)), "o.weight": rng.normal(size=(4, 4))}
    np.savez(path, **state)  # type: ignore[arg-type]
    net = fnn.serial(e=fnn.embedding(7, 4), o=fnn.linear(4, use_bias=False))
    ids = jnp.array([[1, 5, 6]])
    like = jax.eval_shape(net.init, jax.random.key(0), ids)
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, "float64"), like)
    params = load_weights(path, like, embeddings=("e",))
    expected = state["e.weight"][ids] @ state["o.weight"].T
    np.testing.assert_allclose(net.forward(params, ids)[0], expected, rtol=1e-12)
    refused(path, "e/w got (4, 7), needs (7, 4)", "embeddings=", like=like)
    square = {"e.weight": np.eye(4)}
    with pytest.raises(ValueError, match=r"the weight of e, square and .* embeddings=\('e',\)"):
        torch_names(square)
    assert torch_names(square, embeddings=())["e/w"].shape == (4, 4)
    with pytest.raises(ValueError, match="are for PyTorch's names, not fnn's"):
        load_weights(path, like, names="fnn", embeddings=("e",))


def test_two_names_of_one_path_are_refused() -> None:
    state = {"a.b.weight": np.zeros(2), "a/b.weight": np.zeros(2)}
    with pytest.raises(ValueError, match="two arrays have the path a/b/scale"):
        torch_names(state)


# ---- weights that are not the network's --------------------------------------------------------


def test_misfits_are_named(tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    named = arrays()
    np.savez(path, **{k: a for k, a in named.items() if k != "out/b"})
    refused(path, "1 array missing: out/b")
    np.savez(path, **named, other=np.zeros(3))
    refused(path, "1 array that this network does not have: other")
    np.savez(path, **named | {"out/w": named["out/w"].T})
    refused(path, "out/w got (5, 64), needs (64, 5)", "axes in another order")
    np.savez(path, **named | {"out/b": np.zeros((1, 5), np.float32)})
    refused(path, "out/b got (1, 5), needs (5,)")
    np.savez(path, **named | {"out/w": named["out/w"].astype(np.float64)})
    refused(path, "1 array of another dtype: out/w got float64, needs float32")
    np.savez(path, **{f"a{i}": np.zeros(1) for i in range(9)})
    refused(
        path,
        "weights of another network: none of its 9 arrays (a0, a1, a2 and 6 more)",
        "the 4 that this network needs (conv/b, conv/w, out/b and 1 more)",
    )
    np.savez(path, **named, **{f"a{i}": np.zeros(1) for i in range(50)})
    refused(path, "probably weights of another network; 50 arrays that this network does not have")
    with pytest.raises(ValueError, match="names is 'keras'"):
        load_weights(path, LIKE, names="keras")  # type: ignore[arg-type]


# ---- broken files ------------------------------------------------------------------------------


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


TWO = {"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32)}
BROKEN = {
    "empty": b"",
    "short": b"\1\0\0",
    "length": struct.pack("<Q", 2**63) + b"{}",
    "not json": struct.pack("<Q", 2) + b"{,",
    "not text": struct.pack("<Q", 2) + b"\xff\xfe",
    "nested": struct.pack("<Q", 9999 * 2) + b"[" * 9999 * 2,
    "a list": struct.pack("<Q", 2) + b"[]",
    "truncated": safetensors(TWO)[:-1],
    "too long": safetensors(TWO) + b"\0",
    "overlap": safetensors(TWO, b=entry(offsets=(4, 12))),
    "the same": safetensors(TWO, b=entry()),
    "gap": safetensors(TWO, b=entry("F32", (1,), (12, 16))),
    "backwards": safetensors(TWO, b=entry(offsets=(16, 8))),
    "dtype": safetensors(TWO, b=entry("F7", (8,), (8, 16))),
    "no dtype": safetensors(TWO, b=entry(dtype=[])),
    "negative": safetensors(TWO, b=entry(shape=(-2,))),
    "no shape": safetensors(TWO, b=entry(shape=(True, 2))),
    "huge": safetensors(TWO, b=entry(shape=(2**62, 2**62))),
    "size": safetensors(TWO, b=entry(shape=(3,), offsets=(8, 16))),
    "offsets": safetensors(TWO, b=entry(offsets=(8,))),
    "entry": safetensors(TWO, b=3),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_safetensors(name: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(BROKEN[name])
    refused(path, "not a whole, well-formed .safetensors file (")


def test_safetensors_of_no_arrays_of_other_dtypes_and_without_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(safetensors({}))
    refused(path, "a file without arrays")
    path.write_bytes(safetensors(TWO, b=entry("F8_E4M3", (8,), (8, 16))))
    like = {name: jax.ShapeDtypeStruct((2,), jnp.float32) for name in TWO}
    refused(path, "a dtype that is not NumPy's", "float8_e4m3", like=like)
    with pytest.raises(OSError):
        load_weights(tmp_path / "none.safetensors", like)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"pip install safetensors"):
        load_weights(path, like)


def test_broken_npz(tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    for content in (b"", b"\x93NUMPY", b"PK", b"PK\3\4 and no more", b"not a zip"):
        path.write_bytes(content)
        refused(path, ".npz file")
    np.savez(path, a=np.array([object()]))
    refused(path, "not a whole, well-formed .npz file")  # a pickle, which could run anything
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(path, "readme.txt in the archive is not an array")
    with zipfile.ZipFile(path, "w"):
        pass
    refused(path, "without arrays")
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for _ in range(2):
            archive.writestr("w.npy", b"")
    refused(path, "several arrays have the same name")
    for name in ("w.pth", "w.txt"):
        (tmp_path / name).write_bytes(b"PK")
        refused(tmp_path / name, "read from .npz and .safetensors")
    with pytest.raises(OSError):
        load_weights(tmp_path / "none.npz", LIKE)


@pytest.mark.filterwarnings("ignore")  # zipfile and NumPy warn of some of what they then refuse
@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_damage_anywhere_is_one_line_or_other_numbers(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w.{suffix}"
    np.savez(tmp_path / "w.npz", **arrays())  # type: ignore[arg-type]
    whole = path.read_bytes() if suffix == "npz" else safetensors(arrays())
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        if rng.random() < 0.3:
            del damaged[rng.integers(len(damaged)) :]
        else:
            # Mostly near the beginning or the end, where the structure is.
            near = int(min(len(damaged) - 1, rng.exponential(200)))
            damaged[near if rng.random() < 0.5 else -1 - near] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            load_weights(path, LIKE)
        except ValueError as error:
            assert "\n" not in str(error)
