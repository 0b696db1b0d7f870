"""The smallest landscapes that are not convex: two weights, so that all of it can be seen.

The lecture's network without its hidden layer's width, y_hat = w2 w1 x, has a saddle at 0 and two
valleys of minima. Two neurons, y_hat = tanh(w1 x) + tanh(w2 x), have two minima, because swapping
the neurons changes nothing, and between them there is a saddle. Newton's method goes to whatever
critical point is near, saddles included; saddle-free Newton (Dauphin et al. 2014) goes down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.colors import to_hex

import fnn
from experiments.common.console import console, table
from experiments.common.options import at_least, positive_rate
from experiments.common.run import write_csv
from experiments.landscape import page
from experiments.landscape.study import Study
from experiments.landscape.surface_figures import COLORS, GROUND, Drawn, picture
from experiments.landscape.surface_page import document

TITLE = "The smallest networks that are not convex"
LOSS = fnn.squared_error()
ARRIVED = 1e-10  # the largest gradient at which a path has arrived
NEGATIVE = -1e-6  # below this an eigenvalue counts as negative, and not as rounding
AGREEMENT = 1e-10  # of fnn with the closed forms
DAMPING = 1e-3  # of saddle-free Newton: no eigenvalue counts as nearer to 0
FAR = 10.0  # a weight this large has left for good
LONGEST = 0.5  # longer steps are shortened: so far away E is another function

Weights = Any  # w1 and w2, an array (2,)


@dataclass(kw_only=True)
class Surface(Study):
    """Two weights: the whole surface, its critical points, and the paths of three methods."""

    steps: int = 2000
    """steps of a path, at most"""
    learning_rate: float = 0.2
    """of gradient descent"""
    points: int = 8
    """examples of the two neurons"""

    def prepare(self) -> None:
        super().prepare()
        at_least(self, 1, "steps")
        at_least(self, 3, "points")  # two can leave no saddle on the diagonal
        positive_rate(self)


class Local(NamedTuple):
    """The error E at some weights, its gradient (2,) and its Hessian (2, 2)."""

    error: Any
    gradient: Any
    hessian: Any


class Landscape(NamedTuple):
    """A network with two weights, and what is known about its error without computing it."""

    name: str
    title: str
    about: str
    net: fnn.Block
    x: np.ndarray
    target: np.ndarray
    closed: Callable[[Weights], Local]  # from formulas on paper
    critical: dict[str, tuple[float, float]]  # where the gradient is 0
    starts: tuple[tuple[float, float], ...]
    view: tuple[float, float]  # the weights that are drawn, from and to
    mesh: tuple[np.ndarray, np.ndarray]  # w1 and w2 of the surface, mirrored by a swap
    camera: tuple[float, float]  # elevation and azimuth, in degrees


# ---- two networks ----------------------------------------------------------------------------


def product_network() -> fnn.Block:
    """y_hat = w2 w1 x."""
    return fnn.serial(
        w1=fnn.linear(1, use_bias=False),
        w2=fnn.linear(1, use_bias=False),
    )


def two_neurons() -> fnn.Block:
    """y_hat = tanh(w1 x) + tanh(w2 x)."""
    return fnn.graph(
        "x",
        [
            ("w1", fnn.linear(1, use_bias=False), "x"),
            ("neuron1", fnn.tanh(), "w1"),
            ("w2", fnn.linear(1, use_bias=False), "x"),
            ("neuron2", fnn.tanh(), "w2"),
            ("sum", fnn.add(), ("neuron1", "neuron2")),
        ],
        "sum",
    )


def product_landscape(x: float = 1.0, y: float = 1.0) -> Landscape:
    """E = (w2 w1 x - y)^2 / 2, for x and y above 0."""

    def closed(w: Weights) -> Local:
        w1, w2 = w
        d = w2 * w1 * x - y
        return Local(
            d**2 / 2,
            np.array([d * w2 * x, d * w1 * x]),
            np.array([[(w2 * x) ** 2, d * x + w1 * w2 * x**2],
                      [d * x + w1 * w2 * x**2, (w1 * x) ** 2]]),
        )  # fmt: skip

    mean, half = np.meshgrid(np.linspace(-1.6, 1.6, 121), np.linspace(-0.75, 0.75, 121))
    s = float(np.sqrt(y / x))  # on the valleys w1 w2 = y/x, nearest to 0
    return Landscape(
        "product", "One weight behind the other: ŷ = w₂ w₁ x",
        "At the saddle, 0, the network is symmetric: nothing says which valley to go to. In the "
        "valleys w₁ w₂ = y/x every point is a minimum.",
        product_network(), np.array([[x]]), np.array([[y]]), closed,
        critical={"saddle": (0.0, 0.0), "valley": (s, s), "other valley": (-s, -s)},
        starts=(
            (-0.8 * s, 0.65 * s), (0.3 * s, -0.2 * s), (1.75 * s, 0.1 * s), (-1.8 * s, -1.5 * s),
        ),
        view=(-2 * s, 2 * s),
        mesh=(s * (mean + half), s * (mean - half)), camera=(34, -68),
    )  # fmt: skip


def neurons_landscape(
    seed: int = 0, points: int = 8, teacher: tuple[float, float] = (0.3, 3.0)
) -> Landscape:
    """Half the mean square of tanh(w1 x) + tanh(w2 x) - y, where y is the teacher's answer.

    Examples x between 0.1 and 5, evenly on a logarithmic scale but for some noise.
    """
    a, b = teacher
    rng = np.random.default_rng(seed)
    x = np.geomspace(0.1, 5, points) * np.exp(rng.normal(scale=0.1, size=points))
    y = np.tanh(a * x) + np.tanh(b * x)

    def closed(w: Weights) -> Local:
        t = np.tanh(np.multiply.outer(np.asarray(w), x))  # of neuron i at example j
        slope = x * (1 - t**2)  # dt/dw, as tanh' = 1 - tanh^2
        bend = -2 * x * t * slope  # d^2t/dw^2
        d = t.sum(0) - y
        hessian = slope @ slope.T + np.diag(bend @ d)
        return Local((d**2).mean() / 2, slope @ d / points, hessian / points)

    # Minima and saddle are near one hyperbola, on which the product of the weights is the same.
    mean, ratio = np.meshgrid(np.linspace(0.55, 1.55, 121), np.geomspace(1 / 3.5, 3.5, 121))
    # By symmetry the gradient on the diagonal w1 = w2 points along it: one number has to be 0.
    saddle = root(lambda w: closed((w, w)).gradient[0], a, b)
    return Landscape(
        "neurons", "Two neurons: ŷ = tanh(w₁ x) + tanh(w₂ x)",
        "A swap of the neurons changes nothing, so there are two minima. Between them is a saddle, "
        "where both neurons are the same.",
        two_neurons(), x[:, None], y[:, None], closed,
        critical={"saddle": (saddle, saddle), "minimum": (a, b), "its mirror image": (b, a)},
        starts=((1.25, 1.65), (1.3, 1.1), (3.6, 3.2), (2.0, 0.1)),
        view=(-0.25, 4.0),
        mesh=(mean * ratio, mean / ratio), camera=(33, -120),
    )  # fmt: skip


def root(f: Callable[[float], float], low: float, high: float) -> float:
    """Where f is 0 between low and high, by bisection: as exactly as a float can say."""
    rising = f(low) < 0
    while low < (middle := (low + high) / 2) < high:
        if (f(middle) < 0) == rising:
            low = middle
        else:
            high = middle
    return middle


# ---- the surface by fnn ----------------------------------------------------------------------


def as_params(w: Weights) -> dict[str, Any]:
    """Two weights as the parameters of either network."""
    return {"w1": {"w": jnp.reshape(w[0], (1, 1))}, "w2": {"w": jnp.reshape(w[1], (1, 1))}}


def as_weights(params: Any) -> jax.Array:
    """Parameters, or their gradients, as w1 and w2."""
    return jnp.concatenate([params["w1"]["w"].ravel(), params["w2"]["w"].ravel()])


def gradient_of(land: Landscape) -> Callable[[Any], Any]:
    """Parameters to gradients, by the hand-written backward pass."""
    return fnn.curvature.gradient_of(land.net, LOSS, land.x, land.target)


def by_fnn(land: Landscape) -> Callable[[Weights], Local]:
    """The error, gradient and Hessian at some weights."""
    whole, gradient = fnn.with_loss(land.net, LOSS), gradient_of(land)

    def local(w: Weights) -> Local:
        params = as_params(w)
        error, _ = whole.forward({"net": params}, (land.x, land.target))
        return Local(error, as_weights(gradient(params)), fnn.curvature.hessian(gradient, params))

    return jax.jit(local)


def heights(land: Landscape) -> Callable[[Any, Any], np.ndarray]:
    """E at arrays of w1 and w2, in one call."""
    error = jax.jit(jax.vmap(lambda w: by_fnn(land)(w).error))

    def height(w1: Any, w2: Any) -> np.ndarray:
        w = np.stack([np.ravel(w1), np.ravel(w2)], 1)
        return np.asarray(error(w)).reshape(np.shape(w1))

    return height


def index(hessian: Any) -> int:
    """In how many directions it goes down: the number of negative eigenvalues."""
    return int(np.sum(np.linalg.eigvalsh(hessian) < NEGATIVE))


# ---- three methods ---------------------------------------------------------------------------


def methods(land: Landscape, learning_rate: float) -> dict[str, Any]:
    """Three optimisers in one protocol, from the gradient g and the Hessian H.

    Gradient descent steps by -rate g. Newton steps by -H^-1 g, to where the gradient would be 0 if
    E were quadratic, be it a minimum or a saddle. Saddle-free Newton steps by -|H|^-1 g: as far,
    but down along every eigenvector.
    """
    product = fnn.curvature.hvp(gradient_of(land))
    return {
        "gradient descent": fnn.sgd(learning_rate),
        "Newton": fnn.curvature.newton(product),
        "saddle-free Newton": fnn.curvature.saddle_free_newton(product, DAMPING),
    }


def paths(
    land: Landscape, optimizer: Any, starts: Sequence[Weights], steps: int
) -> list[np.ndarray]:
    """From each start the weights (n, 2) after 0, 1, ... steps, until the gradient is 0."""
    gradient = gradient_of(land)

    @jax.jit
    def look(w: Weights, state: Any) -> tuple[Any, Any, Any]:
        params = as_params(w)
        grads = gradient(params)
        move, state = optimizer.update(grads, state, params)
        return as_weights(grads), as_weights(move), state

    def path(start: Weights) -> np.ndarray:
        w, state = np.array(start), optimizer.init(as_params(start))
        passed = [w]
        for _ in range(steps):
            slope, move, state = look(w, state)
            if np.max(np.abs(slope)) < ARRIVED or np.max(np.abs(w)) > FAR:
                break
            w = w + np.asarray(move) * min(1.0, LONGEST / np.linalg.norm(move))
            passed.append(w)
        return np.array(passed)

    return [path(start) for start in starts]


# ---- the study -------------------------------------------------------------------------------


def landscapes(options: Surface) -> tuple[Landscape, ...]:
    """Both networks."""
    return product_landscape(), neurons_landscape(options.seed, options.points)


def surface(options: Surface) -> int:
    points: list[dict[str, Any]] = []
    ends: list[dict[str, Any]] = []
    content: list[str] = []
    with jax.enable_x64(True):
        for land in landscapes(options):
            local = by_fnn(land)
            passed = {
                name: paths(land, optimizer, land.starts, options.steps)
                for name, optimizer in methods(land, options.learning_rate).items()
            }
            critical = [_critical(land, local, name) for name in land.critical]
            reached = [_end(land, local, name, p) for name, own in passed.items() for p in own]
            content += _section(options, land, passed, critical, reached)
            points += critical
            ends += reached
    worst = max(row["difference"] for row in points + ends)
    words = f"{_findings(ends)} fnn and the closed forms differ by {worst:.0e} at most."
    console.print(words)
    write_csv(options.out / "surface.csv", ends)
    write_csv(options.out / "surface_critical.csv", points)
    page.write(
        options.out, "surface", TITLE,
        page.paragraph(INTRODUCTION), LINK, *content, page.paragraph(words),
        page.code(product_network, two_neurons, gradient_of, by_fnn, methods, paths),
    )  # fmt: skip
    interactive = document("The whole loss of a network with two weights", page_data(options))
    (options.out / "surface.html").write_text(interactive, encoding="utf-8")
    console.print(
        f"saved in {options.out}: report.html, surface.html (turn the surface, choose a start), "
        "surface_product.png, surface_neurons.png, surface.csv, surface_critical.csv"
    )
    return int(not worst < AGREEMENT)


INTRODUCTION = (
    "The error of a network with two weights can be seen whole. Even this is not convex: half "
    "way between two minima is a saddle, where the gradient is 0 and two ways lead down. The index "
    "of a critical point is the number of negative eigenvalues of the Hessian: 0 at a minimum, 1 "
    "at these saddles. Newton's method goes to critical points of any index; saddle-free Newton "
    "turns the steps along negative eigenvalues around, and goes down. Steps longer than "
    f"{LONGEST} are shortened to that."
)
LINK = (
    '<p><a href="surface.html">Turn the surface, and choose a start with a click</a> '
    "(surface.html).</p>"
)
POINT_COLUMNS = ("critical point", "w1", "w2", "E", "eigenvalues", "index", "fnn's error")
END_COLUMNS = ("method", "from", "steps", "to", "E", "gradient", "eigenvalues", "index")


def _curvature(hessian: Any) -> dict[str, Any]:
    low, high = np.linalg.eigvalsh(hessian)
    return {"low_eigenvalue": float(low), "high_eigenvalue": float(high), "index": index(hessian)}


def _difference(land: Landscape, local: Callable[[Weights], Local], w: Weights) -> float:
    """How far fnn is from the closed forms of the error, the gradient and the Hessian."""
    pairs = zip(land.closed(w), local(w), strict=True)
    return float(max(np.max(np.abs(exact - ours)) for exact, ours in pairs))


def _findings(ends: list[dict[str, Any]]) -> str:
    """Where each method ended, counted."""
    said = []
    for method in dict.fromkeys(row["method"] for row in ends):
        own = [row for row in ends if row["method"] == method]
        arrived = [row for row in own if row["gradient"] < ARRIVED]
        minima = sum(row["index"] == 0 for row in arrived)
        said.append(
            f"{method} ends at a minimum from {minima} of {len(own)} starts, at a saddle from "
            f"{len(arrived) - minima}, and has not arrived from {len(own) - len(arrived)}"
        )
    text = "; ".join(said)
    return f"{text[0].upper()}{text[1:]}."


def _critical(land: Landscape, local: Callable[[Weights], Local], name: str) -> dict[str, Any]:
    """A critical point by its closed form, and how far fnn is from that."""
    w = np.array(land.critical[name])
    exact = land.closed(w)
    return {
        "landscape": land.name, "point": name, "w1": w[0], "w2": w[1],
        "error": float(exact.error), **_curvature(exact.hessian),
        "difference": _difference(land, local, w),
    }  # fmt: skip


def _end(
    land: Landscape, local: Callable[[Weights], Local], method: str, path: np.ndarray
) -> dict[str, Any]:
    """Where a path ends, and how far fnn is from the closed forms where it starts."""
    first, last = path[0], path[-1]
    here = local(last)
    return {
        "landscape": land.name, "method": method, "start_w1": first[0], "start_w2": first[1],
        "steps": len(path) - 1, "w1": last[0], "w2": last[1], "error": float(here.error),
        "gradient": float(np.max(np.abs(here.gradient))), **_curvature(here.hessian),
        "difference": _difference(land, local, first),
    }  # fmt: skip


def pair(first: float, second: float) -> str:
    """Two numbers, without the minus of one that rounds to 0."""
    return f"{round(first, 4) + 0.0:.4f}, {round(second, 4) + 0.0:.4f}"


def _section(
    options: Surface,
    land: Landscape,
    passed: dict[str, list[np.ndarray]],
    critical: list[dict[str, Any]],
    reached: list[dict[str, Any]],
) -> list[str]:
    """Prints the tables of a landscape; returns them for the page, below its figure."""

    def eigenvalues(row: dict[str, Any]) -> str:
        return pair(row["low_eigenvalue"], row["high_eigenvalue"])

    points = [
        (
            row["point"], f"{row['w1']:.6f}", f"{row['w2']:.6f}", f"{row['error']:.6f}",
            eigenvalues(row), row["index"], f"{row['difference']:.0e}",
        )
        for row in critical
    ]  # fmt: skip
    ends = [
        (
            row["method"], f"{row['start_w1']:g}, {row['start_w2']:g}", row["steps"],
            pair(row["w1"], row["w2"]), f"{row['error']:.2g}", f"{row['gradient']:.0e}",
            eigenvalues(row), row["index"],
        )
        for row in reached
    ]  # fmt: skip
    table(f"{land.title}: critical points", POINT_COLUMNS, points)
    table(f"{land.title}: where the paths end", END_COLUMNS, ends)
    labels = {
        f"{row['point']}: index {row['index']}\nλ = {row['low_eigenvalue']:.2g} and "
        f"{row['high_eigenvalue']:.2g}".replace("-", "\N{MINUS SIGN}"): (row["w1"], row["w2"])
        for row in critical
    }
    drawn = Drawn(land.title, heights(land), labels, land.view, land.mesh, land.camera, passed)
    caption = (
        f"{land.title}. Above: the surface with the paths from one start, and E at each step. "
        "Below: the paths from four starts (squares); a diamond is a saddle, a circle a minimum."
    )
    return [
        page.figure(picture(drawn), options.out / f"surface_{land.name}.png", caption),
        page.numbers(POINT_COLUMNS, points),
        page.numbers(END_COLUMNS, ends),
    ]


def page_data(options: Surface) -> dict[str, Any]:
    """What the script of surface.html reads: the data, where to look, and the constants."""
    return {
        "steps": options.steps, "rate": options.learning_rate, "damping": DAMPING,
        "arrived": ARRIVED, "negative": NEGATIVE, "far": FAR, "longest": LONGEST,
        "colors": COLORS, "ground": [to_hex(GROUND(i / 6)) for i in range(7)],
        "landscapes": {land.name: _land_data(land) for land in landscapes(options)},
    }  # fmt: skip


def _land_data(land: Landscape) -> dict[str, Any]:
    critical = [
        {"name": name, "w": w, "index": index(land.closed(np.array(w)).hessian)}
        for name, w in land.critical.items()
    ]
    return {
        "title": land.title, "about": land.about, "x": land.x.ravel().tolist(),
        "y": land.target.ravel().tolist(), "critical": critical, "starts": land.starts,
        "view": land.view, "camera": land.camera,
        # A third of the lines: a browser draws them again at each turn.
        "mesh": [w[::3, ::3].round(4).tolist() for w in land.mesh],
    }  # fmt: skip
