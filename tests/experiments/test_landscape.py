"""Studies of the landscape, small."""

import csv
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from experiments.__main__ import main
from experiments.common.data import Split
from experiments.landscape.connected import Connected, barrier, bezier, connected, line
from experiments.landscape.critical import Found, finder, found_from, minimum
from experiments.landscape.escape import Escape, escape
from experiments.landscape.linear import Linear, known, linear, network
from experiments.landscape.minima import Minima, minima
from experiments.landscape.permutations import matched, permutable, permuted, sizes
from experiments.landscape.plane import Plane, Way, direction, not_convex, plane
from experiments.landscape.saddles import Saddles, exponent, pixels, saddles, slope
from experiments.landscape.spectrum import Exact, Spectrum, spectrum
from experiments.landscape.surface import (
    Surface,
    by_fnn,
    index,
    methods,
    neurons_landscape,
    paths,
    product_landscape,
    root,
    surface,
)

pytestmark = pytest.mark.as_users


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.mark.slow
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


# ---- critical points ---------------------------------------------------------------------------


def test_critical_points_of_a_function_are_found_and_told_apart() -> None:
    def loss(w: jax.Array) -> jax.Array:  # minima at (1, 0) and (-1, 0), a saddle at (0, 0)
        return (w[0] ** 2 - 1) ** 2 / 4 + w[1] ** 2

    with jax.enable_x64(True):
        search = finder(loss, jax.grad(loss), 50)
        minimum, saddle = (search(jnp.array(w)) for w in ([0.8, 3.0], [0.2, -1.0]))

        def never_flat(w: jax.Array) -> jax.Array:  # its gradient is shortest at 0, and not 0
            return w[0] ** 3 / 3 + w[0] + w[1] ** 2

        stuck = finder(never_flat, jax.grad(never_flat), 50)(jnp.array([0.5, 1.0]))
    np.testing.assert_allclose(minimum.params, [1, 0], atol=1e-10)
    np.testing.assert_allclose(saddle.params, [0, 0], atol=1e-10)
    np.testing.assert_allclose(saddle.eigenvalues, [-1, 2], atol=1e-10)
    assert (minimum.negative, saddle.negative) == (0, 0.5)
    assert [found.kind for found in (minimum, saddle, stuck)] == [
        "critical", "critical", "gradient-flat",
    ]  # fmt: skip


def test_known_values_are_critical_and_have_their_index() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 5)) * [3, 2, 1.5, 1, 0.5]
    covariance = x.T @ x / 50
    e, vectors = np.linalg.eigh(covariance)
    values, indices = known(covariance, 2)
    assert len(values) == 1 + 5 + 10
    with jax.enable_x64(True):
        net, loss = network(2, 5), fnn.squared_error()
        gradient = fnn.curvature.gradient_of(net, loss, x, x)
        hessian = jax.jit(partial(fnn.curvature.hessian, gradient))
        for inside in ([], [0], [4], [1, 3], [3, 4]):
            a = np.zeros((5, 2))
            a[:, : len(inside)] = vectors[:, inside]
            params = {"code": {"w": jnp.asarray(a)}, "out": {"w": jnp.asarray(a.T)}}
            assert max(map(jnp.max, map(jnp.abs, jax.tree.leaves(gradient(params))))) < 1e-12
            value = (e.sum() - e[inside].sum()) / 2
            place = int(np.argmin(abs(values - value)))
            assert values[place] == pytest.approx(value)
            curvature = np.linalg.eigvalsh(hessian(params))
            assert (curvature < -1e-9).mean() == pytest.approx(indices[place])


@pytest.mark.slow
def test_critical_points_of_the_autoencoder_are_the_known_ones(tmp_path: Path) -> None:
    options = Linear(hidden=2, networks=1, starts=6, steps=40, noise=0.1, out=tmp_path)
    options.prepare()
    assert linear(options) == 0
    found = [row for row in rows_of(tmp_path / "linear.csv") if row["kind"] == "critical"]
    assert len(found) >= 4
    assert all(float(row["error"]) < 1e-10 for row in found)
    assert all(float(row["index"]) == float(row["known_index"]) for row in found)


def test_an_image_keeps_its_mean_when_it_is_made_smaller() -> None:
    image = np.random.default_rng(0).random((2, 784))
    np.testing.assert_allclose(pixels(image).mean(1), image.mean(1))
    np.testing.assert_allclose(pixels(image, 28), image)
    np.testing.assert_allclose(pixels(image, 14)[0, 0], image[0, [0, 1, 28, 29]].mean())


def test_the_exponent_of_a_law_is_found() -> None:
    energy = np.linspace(0.3, 0.5, 12)
    assert exponent(energy, 2 * (energy - 0.29) ** 1.5)[0] == pytest.approx(1.5, abs=0.1)


def test_a_network_too_large_for_its_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="lanczos"):
        Saddles(hidden=100).prepare()


def test_saddle_free_newton_ends_near_a_minimum() -> None:
    def loss(w: jax.Array) -> jax.Array:  # minima at (1, 0) and (-1, 0), a saddle at (0, 0)
        return (w[0] ** 2 - 1) ** 2 / 4 + w[1] ** 2

    with jax.enable_x64(True):
        descend = minimum(loss, jax.grad(loss), 60)
        ends = [descend(jnp.array(w)) for w in ([0.01, 3.0], [-0.2, -1.0])]
    np.testing.assert_allclose(ends, [[1, 0], [-1, 0]], atol=1e-4)


def test_searches_at_once_come_back_in_their_order() -> None:
    ticks: list[int] = []
    with jax.enable_x64(True):
        search = finder(lambda w: jnp.sum(w**2), lambda w: 2 * w, 5)
        starts = [jnp.full(2, float(i)) for i in range(5)]
        found = found_from(starts, search, lambda: ticks.append(1))
    assert len(ticks) == 5
    assert [f.norms[0] for f in found] == [8.0 * i**2 for i in range(5)]
    assert {f.kind for f in found} == {"critical"}


def test_a_short_gradient_in_the_kernel_of_the_hessian_is_not_critical() -> None:
    found = Found(None, 0.0, np.float64(1e-12), np.float64(1e-9), np.ones(2), np.ones(1))
    assert found.kind == "gradient-flat"
    assert found._replace(flatness=np.float64(0.1)).kind == "critical"
    assert found._replace(squared_norm=np.float64(1e-23)).kind == "critical"


def test_one_exponent_of_several_groups() -> None:
    above = np.linspace(0.1, 1, 6)
    groups = [np.stack([above * k, 3 * k * (above * k) ** 1.5], 1) for k in (0.5, 2.0)]
    assert slope([*groups, np.empty((0, 2))]) == pytest.approx(1.5)


@pytest.mark.slow
def test_saddles_on_two_losses_and_random_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    few = Split(rng.normal(size=(30, 100)), np.arange(30) % 10)
    monkeypatch.setattr("experiments.landscape.saddles.digits", lambda *_: few)
    options = Saddles(hidden=1, examples=30, starts=4, minima=1, phi=(0.5,), steps=3, out=tmp_path)
    options.prepare()
    assert saddles(options) == 0
    rows = rows_of(tmp_path / "saddles.csv")
    assert [row["network"] for row in rows[::5]] == [
        "MNIST, squared error", "MNIST, cross-entropy", "phi = 0.5",
    ]  # fmt: skip
    assert {row["error"] for row in rows[10:]} == {"nan"}
    printed = capsys.readouterr().out
    assert "0.1250" in printed and "are no critical points" in " ".join(printed.split())
    assert (tmp_path / "saddles.png").stat().st_size > 10_000


@pytest.mark.slow
def test_saddle_free_newton_leaves_and_newton_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    few = Split(rng.normal(size=(60, 100)), np.arange(60) % 10)
    monkeypatch.setattr("experiments.landscape.escape.digits", lambda *_: few)
    options = Escape(
        hidden=2, examples=60, batch_size=20, steps=30, newton_steps=25, krylov=6, rates=(0.1,),
        out=tmp_path,
    )  # fmt: skip
    options.prepare()
    assert escape(options) == 0
    losses: dict[str, list[float]] = {}
    for row in rows_of(tmp_path / "escape.csv"):
        losses.setdefault(row["method"], []).append(float(row["loss"]))
    fallen = {name: values[0] - values[-1] for name, values in losses.items()}
    assert fallen["saddle-free Newton"] > 0.3 > 0.01 > fallen["Newton"]


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
    "cnn": (fnn.models.cnn(3, channels=(4, 5), hidden=6), (2, 8, 8, 2), [4, 5, 6]),
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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_a_way_between_networks_of_different_shapes_is_refused_by_path() -> None:
    def params(units: int) -> dict[str, dict[str, np.ndarray]]:
        return {"hidden": {"w": np.zeros((3, units), np.float32)}}

    message = r"end\['hidden'\]\['w'\] has shape \(3, 1\), needs that of start: \(3, 2\)"
    with pytest.raises(ValueError, match=message):
        line(params(2), params(1))
    with pytest.raises(ValueError, match=message):
        bezier(params(2), params(2), params(1))
    with pytest.raises(TypeError, match="structure of start"):
        line(params(2), {"out": np.zeros(2)})


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


@pytest.mark.slow
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


# ---- two weights -------------------------------------------------------------------------------

LANDSCAPES = [product_landscape(), product_landscape(x=0.5, y=3.0), neurons_landscape()]


@pytest.mark.parametrize("land", LANDSCAPES)
def test_closed_forms_are_those_of_fnn(land: Any) -> None:
    """At the critical points, and at others, where no term of the Hessian is 0."""
    with jax.enable_x64(True):
        local = by_fnn(land)
        for w in (*land.critical.values(), *land.starts, (0.7, -1.3)):
            exact, ours = land.closed(np.array(w)), local(np.array(w))
            for theirs, value in zip(exact, ours, strict=True):
                np.testing.assert_allclose(value, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_two_mirrored_minima_and_a_saddle_between_them(seed: int) -> None:
    land = neurons_landscape(seed)
    at = {name: land.closed(np.array(w)) for name, w in land.critical.items()}
    for here in at.values():
        np.testing.assert_allclose(here.gradient, 0, atol=1e-15)
    assert [index(here.hessian) for here in at.values()] == [1, 0, 0]
    assert at["minimum"].error == at["its mirror image"].error == 0 < at["saddle"].error
    # Down from the saddle is apart: along (1, -1).
    assert np.sign(np.linalg.eigh(at["saddle"].hessian)[1][:, 0]).sum() == 0


@pytest.mark.parametrize("x, y", [(1.0, 1.0), (0.5, 3.0)])
def test_saddle_and_valleys_of_the_product(x: float, y: float) -> None:
    land = product_landscape(x, y)
    saddle, *valleys = (land.closed(np.array(w)) for w in land.critical.values())
    np.testing.assert_allclose(np.linalg.eigvalsh(saddle.hessian), [-x * y, x * y])
    for here in valleys:
        np.testing.assert_allclose(np.linalg.eigvalsh(here.hessian), [0, 2 * x * y], atol=1e-14)
        np.testing.assert_allclose(here.gradient, 0, atol=1e-14)


@pytest.mark.parametrize("seed", range(3))
def test_newton_goes_to_the_saddle_and_saddle_free_newton_down(seed: int) -> None:
    for land in (product_landscape(), neurons_landscape(seed)):
        saddle = np.array(land.critical["saddle"])
        start = saddle + np.array([0.25, -0.12])
        with jax.enable_x64(True):
            ways = {n: paths(land, m, [start], 30)[0] for n, m in methods(land, 0.2).items()}
        np.testing.assert_allclose(ways["Newton"][-1], saddle, atol=1e-9)
        assert len(ways["Newton"]) < 10 < len(ways["gradient descent"])
        assert land.closed(ways["saddle-free Newton"][-1]).error < 1e-15
        slow = [land.closed(w).error for w in ways["gradient descent"]]
        assert slow == sorted(slow, reverse=True)


def test_root_is_as_exact_as_a_float() -> None:
    assert root(lambda v: v**3 - 2, 0, 2) == pytest.approx(2 ** (1 / 3), rel=4e-16)
    assert root(lambda v: 1 - v, 0, 3) == pytest.approx(1, rel=4e-16)


@pytest.mark.slow
def test_surface_writes_pictures_and_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = Surface(steps=30, out=tmp_path)
    options.prepare()
    assert surface(options) == 0
    printed = capsys.readouterr().out.replace("\n", " ")
    assert "; Newton ends at a minimum from 2 of 8 starts, at a saddle from 5" in printed
    assert "saddle-free Newton ends at a minimum from 8 of 8 starts, at a saddle from 0" in printed
    assert "fnn and the closed forms differ by" in printed
    points = rows_of(tmp_path / "surface_critical.csv")
    assert [row["index"] for row in points] == ["1", "0", "0"] * 2
    assert max(float(row["difference"]) for row in points) < 1e-10
    assert len(rows_of(tmp_path / "surface.csv")) == 2 * 3 * 4
    assert "def gradient_of" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--steps", "0"], "--steps is 0, needs at least 1"),
        (["--points", "2"], "--points is 2, needs at least 3"),
        (["--learning-rate", "nan"], "--learning-rate is nan"),
        (["--seed", "-1"], "--seed is -1"),
    ],
)
def test_surface_refuses_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["landscape", "surface", *arguments, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


# ---- the spectrum, and the edge of stability ---------------------------------------------------


def test_outliers_and_the_error_of_a_density() -> None:
    eigenvalues = np.sort(np.r_[np.linspace(-0.01, 0.02, 40), [1.0, 1.2, 1.5]])
    nodes, weights = eigenvalues[None], np.full((1, 43), 1 / 43)
    with jax.enable_x64(True):
        exact = Exact(3, eigenvalues, fnn.curvature.Spectrum(jnp.array(nodes), jnp.array(weights)))
        assert exact.outliers() == 3 and exact.error() < 1e-10
        moved = fnn.curvature.Spectrum(jnp.array(nodes) + 100, jnp.array(weights))
        assert exact._replace(density=moved).error() == pytest.approx(1, abs=1e-6)


@pytest.mark.slow
def test_the_spectrum_and_the_edge_of_stability(tmp_path: Path) -> None:
    options = Spectrum(
        hidden=3, epochs=(0, 1), probes=4, steps=20, rates=(0.5,), descent_steps=400, out=tmp_path
    )
    options.prepare()
    assert spectrum(options) == 0
    assert len(rows_of(tmp_path / "spectrum.csv")) == 2 * (65 * 3 + 4 * 10)
    largest = [float(row["largest_eigenvalue"]) for row in rows_of(tmp_path / "edge.csv")]
    assert np.median(largest[-3:]) == pytest.approx(2 / 0.5, rel=0.2)
