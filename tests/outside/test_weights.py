"""Weights carried over from PyTorch, and back: the same network says the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

import fnn

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make test-outside")
nn = torch.nn


class Pair(NamedTuple):
    """One network in both libraries, of the same names.

    ``x``: a batch, images channels last. ``flattened``, ``embeddings``: as in ``torch_names``.
    """

    ours: Callable[[], fnn.Block]
    theirs: Callable[[], Any]
    x: Any
    flattened: dict[str, tuple[int, ...]] = {}  # noqa: RUF012
    embeddings: tuple[str, ...] = ()


def _named(**modules: Any) -> Any:
    net = nn.Sequential()
    for name, module in modules.items():
        net.add_module(name, module)
    return net


RNG = np.random.default_rng(0)
PAIRS = {
    "mlp": Pair(
        lambda: fnn.serial(fc1=fnn.linear(4), act=fnn.tanh(), fc2=fnn.linear(2, use_bias=False)),
        lambda: _named(fc1=nn.Linear(3, 4), act=nn.Tanh(), fc2=nn.Linear(4, 2, bias=False)),
        RNG.normal(size=(5, 3)),
    ),
    "cnn": Pair(
        lambda: fnn.serial(
            conv1=fnn.conv(4, 3, stride=2, padding=1), act=fnn.relu(),
            conv2=fnn.conv(6, (1, 2), padding="VALID", groups=2), pool=fnn.max_pool(2),
            flat=fnn.flatten(), fc=fnn.linear(3),
        ),
        lambda: _named(
            conv1=nn.Conv2d(2, 4, 3, 2, 1), act=nn.ReLU(), conv2=nn.Conv2d(4, 6, (1, 2), groups=2),
            pool=nn.MaxPool2d(2), flat=nn.Flatten(), fc=nn.Linear(24, 3),
        ),
        RNG.normal(size=(5, 7, 9, 2)),
        flattened={"fc": (2, 2, 6)},
    ),
    "decoder": Pair(
        lambda: fnn.serial(
            up=fnn.conv_transpose(6, 3, stride=2, padding=1, output_padding=1, groups=2),
            act=fnn.relu(), out=fnn.conv_transpose(1, (4, 2), padding=1, stride=(2, 1)),
        ),
        lambda: _named(
            up=nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), act=nn.ReLU(),
            out=nn.ConvTranspose2d(6, 1, (4, 2), (2, 1), 1),
        ),
        RNG.normal(size=(2, 3, 4, 4)),
    ),
    "sequence": Pair(
        lambda: fnn.serial(conv=fnn.conv(4, 3, padding=1, dilation=1), pool=fnn.avg_pool(2)),
        lambda: _named(conv=nn.Conv1d(2, 4, 3, padding=1), pool=nn.AvgPool1d(2)),
        RNG.normal(size=(5, 6, 2)),
    ),
    "batch_norm": Pair(
        lambda: fnn.inference(fnn.serial(conv=fnn.conv(4, 1, use_bias=False), bn=fnn.batch_norm())),
        lambda: _named(conv=nn.Conv2d(2, 4, 1, bias=False), bn=nn.BatchNorm2d(4)).eval(),
        RNG.normal(size=(5, 3, 3, 2)),
    ),
    "embedding": Pair(
        lambda: fnn.serial(table=fnn.embedding(4, 4), ln=fnn.layer_norm(), out=fnn.linear(3)),
        lambda: _named(table=nn.Embedding(4, 4), ln=nn.LayerNorm(4), out=nn.Linear(4, 3)),
        RNG.integers(0, 4, (5, 2)),
        embeddings=("table",),
    ),
}  # fmt: skip


def drawn(state: dict[str, Any]) -> dict[str, np.ndarray]:
    """Others for a state_dict's numbers; a running variance stays positive."""
    rng = np.random.default_rng(1)
    return {n: np.abs(rng.normal(size=tuple(t.shape))) for n, t in state.items()}


def as_torch(params: Any, pair: Pair) -> dict[str, np.ndarray]:
    """fnn's parameters under PyTorch's names and in its layouts: the way back."""
    state = {}
    names = {"w": "weight", "b": "bias", "scale": "weight", "bias": "bias"}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        *modules, name = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        a, at = np.asarray(leaf), "/".join(modules)
        if modules[-1] == "statistics":
            modules, name = modules[:-1], f"running_{name}"
        if at in pair.flattened:
            *space, channels = pair.flattened[at]
            if name == "w":
                a = np.moveaxis(a.reshape(*space, channels, -1), -2, 0).reshape(a.shape)
        if name == "w" and at not in pair.embeddings:
            a = a.transpose(-1, -2, *range(a.ndim - 2))
        state[".".join([*modules, names.get(name, name)])] = a
    return state


def answers(pair: Pair, state: dict[str, np.ndarray], params: Any) -> tuple[Any, Any]:
    net = pair.theirs().double()
    tensors = {name: torch.from_numpy(np.array(a)) for name, a in state.items()}
    net.load_state_dict(tensors, strict=False)
    x = torch.from_numpy(pair.x)
    images = x.movedim(-1, 1) if x.ndim > 2 else x
    with torch.no_grad():
        y = net(images).numpy()
    ours = np.asarray(pair.ours().forward(params, pair.x)[0])
    return ours, np.moveaxis(y, 1, -1) if images is not x and y.ndim > 2 else y


@pytest.mark.parametrize("name", PAIRS)
def test_weights_of_pytorch(name: str) -> None:
    pair = PAIRS[name]
    state = drawn(pair.theirs().double().state_dict())
    arrays = fnn.models.torch_names(state, flattened=pair.flattened, embeddings=pair.embeddings)
    like = jax.eval_shape(pair.ours().init, jax.random.key(0), pair.x)
    params = jax.tree_util.tree_map_with_path(
        lambda path, _: arrays[jax.tree_util.keystr(path, simple=True, separator="/")], like
    )
    np.testing.assert_allclose(*answers(pair, state, params), 1e-10, 1e-12)


@pytest.mark.parametrize("name", PAIRS)
def test_weights_for_pytorch(name: str) -> None:
    pair = PAIRS[name]
    rng = np.random.default_rng(2)
    like = jax.eval_shape(pair.ours().init, jax.random.key(0), pair.x)
    params = jax.tree.map(lambda leaf: np.abs(rng.normal(size=leaf.shape)), like)
    state = as_torch(params, pair)
    kept = {n for n in pair.theirs().state_dict() if not n.endswith("num_batches_tracked")}
    assert set(state) == kept
    np.testing.assert_allclose(*answers(pair, state, params), 1e-10, 1e-12)
