"""Studies of the landscape, small."""

import csv
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from experiments.landscape.connected import Connected, barrier, bezier, connected, line
from experiments.landscape.minima import Minima, minima
from experiments.landscape.permutations import matched, permutable, permuted, sizes
from experiments.landscape.plane import Plane, Way, direction, not_convex, plane

pytestmark = pytest.mark.as_users


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_narrow_networks_end_in_minima_that_differ_more(tmp_path: Path) -> None:
    options = Minima(widths=(2, 16), networks=8, epochs=4, out=tmp_path)
    options.prepare()
    assert minima(options) == 0
    rows = rows_of(tmp_path / "minima.csv")
    assert len(rows) == 16

    def spread(width: str) -> float:
        losses = [float(row["test_loss"]) for row in rows if row["width"] == width]
        return max(losses) - min(losses)

    assert spread("16") < spread("2")
    page = (tmp_path / "report.html").read_text()
    assert "minima.png" not in page and "data:image/png" in page and "def at_once" in page


# ---- permutations of hidden units --------------------------------------------------------------

SHARED = fnn.graph(
    "x",
    [
        ("a", fnn.linear(5), "x"), ("b", fnn.linear(5), "a"), ("t", fnn.tanh(), "b"),
        ("again", fnn.linear(5), "t", "b"), ("out", fnn.linear(2), "again"),
    ],
    "out",
)  # fmt: skip
# Sizes of the groups of hidden units; what a block of another kind reads or makes stays in order.
NETWORKS = {
    "mlp": (fnn.models.mlp((8, 7, 3)), (5, 6), [8, 7]),
    "cnn": (fnn.models.cnn(3, (4, 5), 6), (2, 8, 8, 2), [4, 5, 6]),
    "inception": (fnn.serial(fnn.models.inception(1, 2, 3, 4, 5, 6), fnn.flatten(), fnn.linear(2)),
                  (2, 4, 4, 2), [2, 4]),
    "residual": (fnn.serial(fnn.linear(6), fnn.residual(fnn.linear(6), fnn.tanh()),
                            fnn.layer_norm(), fnn.linear(2)), (4, 5), [6]),
    "batch norm": (fnn.serial(fnn.linear(6), fnn.batch_norm(), fnn.relu(), fnn.linear(2)),
                   (4, 5), [6]),
    "repeat": (fnn.serial(fnn.linear(4), fnn.repeat(fnn.layer(4, fnn.tanh()), 3), fnn.linear(5),
                          fnn.tanh(), fnn.linear(2)), (4, 5), [5]),
    "shared": (SHARED, (3, 4), [5]),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_units_are_put_in_another_order_and_found_again(name: str) -> None:
    net, shape, expected = NETWORKS[name]
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = rng.normal(size=shape)
        params = jax.tree.map(
            lambda p: p + 0.1 * rng.normal(size=p.shape), net.init(jax.random.key(0), x)
        )
        groups = permutable(net, params, x)
        assert sizes(params, groups) == expected
        other = permuted(params, groups, [rng.permutation(n) for n in expected])
        forward = jax.jit(net.forward)
        np.testing.assert_allclose(forward(other, x)[0], forward(params, x)[0], rtol=1e-10)
        changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), params, other)
        assert any(jax.tree.leaves(changed))
        again = matched(params, other, groups)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_ways_begin_and_end_at_the_networks() -> None:
    start, bend, end = ({"w": jnp.array(v)} for v in (1.0, 5.0, 3.0))
    for way in (line(start, end), bezier(start, bend, end)):
        assert (float(way(0.0)["w"]), float(way(1.0)["w"])) == (1.0, 3.0)
    assert float(line(start, end)(0.5)["w"]) == 2.0
    assert float(bezier(start, bend, end)(0.5)["w"]) == 3.5
    assert barrier(np.array([1.0, 4.0, 3.0])) == 2.0


def test_matching_units_lowers_the_barrier(tmp_path: Path) -> None:
    options = Connected(
        data="digits", hidden=(16,), epochs=12, batch_size=32, points=9, out=tmp_path
    )
    options.prepare()
    assert connected(options) == 0
    ways: dict[str, list[float]] = {}
    for row in rows_of(tmp_path / "connected.csv"):
        ways.setdefault(row["way"], []).append(float(row["train_loss"]))
    straight, near, curve, order = (barrier(np.array(losses)) for losses in ways.values())
    assert max(near, curve, order) < straight / 2


# ---- a plane through a minimum -----------------------------------------------------------------


def test_directions_are_as_long_as_each_unit_s_weights() -> None:
    params = fnn.models.mlp((4, 3)).init(jax.random.key(0), jnp.ones((1, 5)))
    d = direction(jax.random.key(1), params)
    for name in ("hidden_1", "out"):
        lengths = [jnp.linalg.norm(tree[name]["w"], axis=0) for tree in (d, params)]
        np.testing.assert_allclose(*lengths, rtol=1e-5)
        assert not jnp.any(d[name]["b"])


def test_a_bowl_is_convex_and_a_saddle_is_not() -> None:
    a, b = np.meshgrid(np.linspace(-1, 1, 7), np.linspace(-1, 1, 7))
    assert not_convex(a**2 + a * b + b**2) == 0.0
    assert not_convex(a**2 - b**2) == not_convex(a * b) == 1.0


def test_a_path_in_a_plane() -> None:
    rng = np.random.default_rng(0)
    u, v, w = rng.normal(size=(3, 9))
    coordinates, share = Way(np.stack([u - v, 2 * u, 0 * u])).onto((u, v))
    np.testing.assert_allclose(coordinates, [[1, -1], [2, 0], [0, 0]], atol=1e-12)
    assert share == pytest.approx(1)
    outside = w - np.stack([u, v], 1) @ np.linalg.lstsq(np.stack([u, v], 1), w)[0]
    assert Way(np.stack([outside, 0 * u])).onto((u, v))[1] == pytest.approx(0)
    assert Way(np.stack([u - v, 2 * u])).onto(Way(np.stack([u - v, 2 * u])).principal())[1] > 0.999


def test_planes_around_the_minima(tmp_path: Path) -> None:
    options = Plane(depth=3, width=8, epochs=2, points=7, examples=32, out=tmp_path)
    options.prepare()
    assert plane(options) == 0
    rows = rows_of(tmp_path / "plane.csv")
    assert len(rows) == 2 * 2 * 7 * 7
    middle = [
        r["loss"] for r in rows if r["network"] == "plain" and float(r["a"]) == float(r["b"]) == 0
    ]
    assert len(set(middle)) == 1  # the minimum is in both planes
