"""The loss in a plane through a minimum: rough without residual connections, smooth with them.

After Li et al., "Visualizing the loss landscape of neural nets" (2018): two random directions,
scaled unit by unit to the weights, so that networks of different scale can be compared; biases
stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

import fnn
from experiments import deep
from experiments.common.console import console, table
from experiments.common.data import Split, load
from experiments.common.figures import RED, plt
from experiments.common.options import at_least, positive_rate
from experiments.common.run import write_csv
from experiments.landscape import page
from experiments.landscape.study import Study, descent, progress

TITLE = "A plane through a minimum"
LOSS = fnn.softmax_cross_entropy()
NETWORKS = {"plain": False, "residual": True}


@dataclass(kw_only=True)
class Plane(Study):
    """The loss in a plane around the minima of deep networks, and the way there."""

    depth: int = 50
    """hidden layers"""
    width: int = 64
    """units in each hidden layer"""
    epochs: int = 20
    """passes over the training data"""
    batch_size: int = 32
    """examples per step"""
    learning_rate: float = 0.01
    """of the first step; it falls to 0 as a cosine"""
    points: int = 51
    """points of the plane along each direction"""
    extent: float = 1.0
    """how far the plane reaches, in lengths of the weights"""
    examples: int = 512
    """training examples on which the loss is measured"""

    def prepare(self) -> None:
        super().prepare()
        at_least(self, 1, "width", "epochs", "batch_size", "examples")
        at_least(self, 2, "depth")
        at_least(self, 5, "points")
        positive_rate(self)
        if not 0 < self.extent < float("inf"):
            raise ValueError(f"--extent is {self.extent}, needs a number above 0")


def direction(key: Any, params: Any) -> Any:
    """A random direction; the part of each unit is as long as the unit's weights."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.tree.unflatten(structure, jax.random.split(key, len(leaves)))

    def one(where: Any, key: Any, w: Any) -> Any:
        if where[-1].key != "w":  # biases and the like
            return jnp.zeros_like(w)
        d = jax.random.normal(key, w.shape, w.dtype)
        length = partial(jnp.linalg.norm, axis=-2, keepdims=True)  # of a unit's incoming weights
        return d * length(w) / length(d)

    return jax.tree_util.tree_map_with_path(one, keys, params)


def losses(
    net: fnn.Block, center: Any, directions: tuple[Any, Any], data: Split, steps: np.ndarray
) -> np.ndarray:
    """The loss at center + a d1 + b d2 for all a (rows) and b (columns): one compiled program."""
    x, target = jax.device_put(data)

    def at(a: Any, b: Any) -> Any:
        params = jax.tree.map(lambda c, d, e: c + a * d + b * e, center, *directions)
        return LOSS.forward({}, (net.forward(params, x)[0], target))[0]

    row = jax.vmap(at, (None, 0))
    whole = jax.jit(lambda steps: lax.map(lambda a: row(a, steps), steps))
    return np.asarray(whole(jnp.asarray(steps, jnp.float32)))


class Way(NamedTuple):
    """The parameters along training, as rows relative to the last ones."""

    rows: np.ndarray

    def onto(self, directions: Sequence[np.ndarray]) -> tuple[np.ndarray, float]:
        """The coordinates of its points in a plane, and the share of its variance there."""
        basis = np.stack(directions, 1)
        coordinates = np.linalg.lstsq(basis, self.rows.T, rcond=None)[0].T
        share = np.sum(np.square(coordinates @ basis.T)) / np.sum(np.square(self.rows))
        return coordinates, float(share)

    def principal(self) -> list[np.ndarray]:
        """The two directions that hold most of it, as long as its largest coordinates."""
        _, _, components = np.linalg.svd(self.rows, full_matrices=False)
        return [c * (np.abs(self.rows @ c).max() or 1.0) for c in components[:2]]


def not_convex(values: np.ndarray) -> float:
    """The share of the grid's points at which the loss, in the plane, curves downwards in some
    direction: its 2 x 2 Hessian, by differences, has a negative eigenvalue."""
    f = values
    aa = f[2:, 1:-1] - 2 * f[1:-1, 1:-1] + f[:-2, 1:-1]
    bb = f[1:-1, 2:] - 2 * f[1:-1, 1:-1] + f[1:-1, :-2]
    ab = (f[2:, 2:] - f[2:, :-2] - f[:-2, 2:] + f[:-2, :-2]) / 4
    smallest = (aa + bb) / 2 - np.sqrt(np.square((aa - bb) / 2) + np.square(ab))
    return float(np.mean(~(smallest >= -1e-6 * np.abs(f[1:-1, 1:-1]))))


class Found(NamedTuple):
    """A network's planes: losses, the path in them, the share of its variance."""

    name: str
    random: np.ndarray
    own: np.ndarray
    path: np.ndarray
    own_path: np.ndarray
    shares: tuple[float, float]


def plane(options: Plane) -> int:
    data = load("digits", options.seed)
    few = Split(*(part[: options.examples] for part in data.train))
    steps = np.linspace(-options.extent, options.extent, options.points)
    wide = 1.3 * np.linspace(-1, 1, options.points)
    found = []
    with progress() as bar:
        task = bar.add_task("", total=len(NETWORKS) * (options.epochs + 2 * 10))
        for name, residual in NETWORKS.items():
            bar.update(task, description=name)
            shape = deep.Options(depth=options.depth, width=options.width)
            net = deep.network(fnn.relu(), residual, shape)
            path, center = _trained(net, data.train, options, partial(bar.advance, task))
            keys = jax.random.split(jax.random.fold_in(jax.random.key(options.seed), 1))
            a, b = (direction(key, center) for key in keys)
            flat = [np.asarray(ravel_pytree(d)[0], np.float64) for d in (a, b)]
            coordinates, share = path.onto(flat)
            random = losses(net, center, (a, b), few, steps)
            bar.advance(task, 10)
            own = path.principal()
            unravel = ravel_pytree(center)[1]
            c, d = (unravel(jnp.asarray(v, jnp.float32)) for v in own)
            own_coordinates, own_share = path.onto(own)
            own_losses = losses(net, center, (c, d), few, wide)
            bar.advance(task, 10)
            shares = share, own_share
            found.append(Found(name, random, own_losses, coordinates, own_coordinates, shares))
    _report(options, found, steps, wide)
    return 0


def _trained(
    net: fnn.Block, data: Split, options: Plane, tick: Callable[[], None]
) -> tuple[Way, Any]:
    """The way of training, an epoch a point, and where it ends."""
    x, target = jax.device_put(data)
    optimizer = descent(options.learning_rate, options.epochs, options.batch_size, len(x))
    epoch = fnn.make_epoch(net, LOSS, optimizer, options.batch_size)
    params = net.init(jax.random.key(options.seed), x)
    state, rng = optimizer.init(params), np.random.default_rng(options.seed)
    rows = [np.asarray(ravel_pytree(params)[0], np.float64)]
    for _ in range(options.epochs):
        params, state, _ = epoch(params, state, x, target, rng.permutation(len(x)))
        rows.append(np.asarray(ravel_pytree(params)[0], np.float64))
        tick()
    return Way(np.stack(rows) - rows[-1]), params


# ---- what is shown ---------------------------------------------------------------------------


def _report(options: Plane, found: list[Found], steps: np.ndarray, wide: np.ndarray) -> None:
    cells = [
        (
            f.name, f"{f.random[len(steps) // 2, len(steps) // 2]:.4f}",
            f"{not_convex(f.random):.1%}", f"{not_convex(f.own):.1%}",
            f"{f.shares[0]:.2%}", f"{f.shares[1]:.1%}",
        )
        for f in found
    ]  # fmt: skip
    columns = (
        "network", "loss at the minimum", "not convex", "in the path's plane", "path in the plane",
        "in its own",
    )  # fmt: skip
    table(TITLE, columns, cells)
    write_csv(
        options.out / "plane.csv",
        [
            {"network": f.name, "plane": which, "a": a, "b": b, "loss": values[i, j]}
            for f in found
            for which, values, ticks in (("random", f.random, steps), ("path", f.own, wide))
            for i, a in enumerate(ticks)
            for j, b in enumerate(ticks)
        ],
    )
    page.write(
        options.out, "plane", TITLE,
        page.paragraph(
            f"Networks of {options.depth} layers with and without residual connections, after "
            "training. The plane is spanned by two random directions, of which each unit's part "
            "is as long as its weights. 'Not convex' is the share of the plane's points at which "
            "the loss curves downwards in some direction of the plane."
        ),
        page.figure(_drawn(found, steps, wide), options.out / "plane.png",
            "Above: random directions. Below: the plane that holds most of the training path "
            "(red, an epoch a point; it ends at the cross). The path is hardly in the random "
            "plane: its share of the path's variance is in the table.",
        ),
        page.numbers(columns, cells),
        page.code(direction, losses, Way, not_convex),
    )  # fmt: skip
    console.print(f"saved in {options.out}: report.html, plane.png, plane.csv")


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _drawn(found: list[Found], steps: np.ndarray, wide: np.ndarray) -> Any:
    picture, axes = plt.subplots(2, len(found), figsize=(10, 8.5), layout="constrained")
    for column, f in zip(axes.T, found, strict=True):
        rows = ((f.random, steps, None), (f.own, wide, f.own_path))
        for axis, (values, ticks, path) in zip(column, rows, strict=True):
            # Far from the minimum a plain network's loss can be anything: one colour for all that.
            low = max(float(np.nanmin(values)), 1e-4)
            levels = np.geomspace(low, max(low * 1.1, min(np.nanmax(values), 1e3 * low + 10)), 24)
            drawn = np.clip(np.nan_to_num(values, nan=levels[-1]), levels[0], levels[-1])
            filled = axis.contourf(
                ticks, ticks, np.log10(drawn).T, np.log10(levels), cmap="viridis", extend="max"
            )
            axis.contour(ticks, ticks, np.log10(drawn).T, np.log10(levels), colors="white",
                         linewidths=0.3, alpha=0.6)  # fmt: skip
            bar = picture.colorbar(filled, ax=axis, shrink=0.85)
            places = np.log10(levels[[0, 8, 16, -1]])
            bar.set_ticks(list(places), labels=[_short(10**p) for p in places])
            if path is not None:
                axis.plot(path[:, 0], path[:, 1], color=RED, marker="o", ms=3, lw=1.2)
            axis.plot(0, 0, "x", color="white" if path is None else RED, ms=9, mew=2)
            which = "random plane" if path is None else "plane of the training path"
            axis.set(title=f"{f.name}: {which}", aspect="equal")
            axis.locator_params(nbins=5)
    return picture
