"""The pictures of a landscape of two weights: the surface, its map, and the paths on both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LightSource, LinearSegmentedColormap, PowerNorm
from matplotlib.patheffects import Normal, Stroke

from experiments.common.figures import plt

INK = "#1c2430"
COLORS = {"gradient descent": "#F5A700", "Newton": "#E5383B", "saddle-free Newton": "#0DA271"}
# Deep water in the valleys, light sand on the heights.
GROUND = LinearSegmentedColormap.from_list(
    "ground", ["#1d4668", "#2f7fa8", "#6db3d0", "#b3d9e3", "#e6ecd6", "#f1e3c6", "#e3c9a8"]
)
CASING = [Stroke(linewidth=3.2, foreground="white"), Normal()]
HALO = [Stroke(linewidth=5, foreground="white"), Normal()]

Paths = Mapping[str, Sequence[np.ndarray]]  # of each method, the weights passed (n, 2)
Height = Callable[[Any, Any], np.ndarray]  # E at arrays of w1 and w2


class Drawn(NamedTuple):
    """What is drawn.

    ``height``: E. ``critical``: a label -> weights; a saddle's begins with "saddle".
    ``view``: the weights on the maps, from and to. ``mesh``: w1 and w2 (n, m) of the surface.
    ``paths``: of each method from the same starts; the first start is that on the surface.
    """

    title: str
    height: Height
    critical: Mapping[str, tuple[float, float]]
    view: tuple[float, float]
    mesh: tuple[np.ndarray, np.ndarray]
    camera: tuple[float, float]  # elevation and azimuth in degrees
    paths: Paths


def picture(drawn: Drawn) -> Any:
    """The surface with the paths of one start, E at each step, and a map for each method."""
    figure: Any = plt.figure(figsize=(13, 11), layout="constrained")
    figure.suptitle(drawn.title, fontsize=17, color=INK)
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.25, 1])
    left, right = top.subfigures(1, 2, width_ratios=[1.8, 1])
    _surface(left, drawn)
    _errors(right, drawn)
    axes = bottom.subplots(1, len(drawn.paths), sharey=True)
    for axis, method in zip(axes, drawn.paths, strict=True):
        _map(axis, drawn, method)
    axes[0].set_ylabel("$w_2$", rotation=0, labelpad=12, fontsize=12)
    return figure


def _mark(label: str) -> str:
    return "D" if label.startswith("saddle") else "o"


def _dots(passed: np.ndarray) -> int:
    """Every how many steps there is a dot."""
    return max(1, len(passed) // 50)


def _norm(heights: np.ndarray) -> PowerNorm:
    """Colours that tell low heights apart, where all that matters happens."""
    return PowerNorm(0.45, 0.0, float(heights.max()))


def _surface(figure: Any, drawn: Drawn) -> None:
    axis = figure.add_subplot(projection="3d", computed_zorder=False)
    w1, w2 = drawn.mesh
    e = drawn.height(w1, w2)
    top = float(e.max())
    light = LightSource(300, 50)
    colors = light.shade(
        e, cmap=GROUND, norm=_norm(e), vert_exag=14 / top, blend_mode="soft", fraction=0.6
    )
    axis.plot_surface(
        w1, w2, e, facecolors=colors, rstride=1, cstride=1, linewidth=0, antialiased=False,
        shade=False, zorder=1,
    )  # fmt: skip
    for sheet in ((w1, w2, e), (w1.T, w2.T, e.T)):
        for line in zip(*(part[::10] for part in sheet), strict=True):
            axis.plot(*line, color="white", lw=0.5, alpha=0.5, zorder=2)
    lift = 0.012 * top  # above the surface, so that it does not hide lines on it
    for method, (passed, *_) in drawn.paths.items():
        axis.plot(
            *passed.T, drawn.height(*passed.T) + lift, color=COLORS[method], lw=2, marker="o", ms=4,
            mec="white", mew=0.6, markevery=_dots(passed), zorder=4, label=method,
            path_effects=CASING,
        )  # fmt: skip
    for label, w in drawn.critical.items():
        here = float(drawn.height(*w))
        axis.plot(*zip((*w, here + lift)), _mark(label), color="white", mec=INK, mew=1.6, ms=8,
                  zorder=5)  # fmt: skip
    axis.set(xlabel="$w_1$", ylabel="$w_2$", zlabel="E", zlim=(0, top))
    axis.set_box_aspect((1, 1, 0.5), zoom=1.25)
    axis.view_init(*drawn.camera)
    axis.locator_params("z", nbins=5)
    axis.locator_params("x", nbins=2)
    axis.locator_params("y", nbins=2)
    for side in (axis.xaxis, axis.yaxis, axis.zaxis):
        side.set_pane_color((1, 1, 1, 0))
        side._axinfo["grid"].update(color="#e3e7ec", linewidth=0.6)
    axis.legend(loc="upper left", frameon=False, fontsize=11)
    _name_points(axis, drawn, lift)


def _name_points(axis: Any, drawn: Drawn, lift: float) -> None:
    """Labels beside the surface, each with a line to its point."""
    right = (16, -68) if drawn.camera[1] > -90 else (118, -75)  # clear of the axis in front
    for label, w in drawn.critical.items():
        x, y, _, scale = axis.get_proj() @ (*w, float(drawn.height(*w)) + lift, 1)
        way = (75, 120) if _mark(label) == "D" else right if x > 0 else (-75, -85)
        axis.annotate(
            label, (x / scale, y / scale), way, textcoords="offset points", color=INK,
            ha="center", va="center", fontsize=10.5, linespacing=1.25, zorder=6, path_effects=HALO,
            arrowprops={"arrowstyle": "-", "color": INK, "lw": 0.8, "shrinkA": 2, "shrinkB": 6},
        )  # fmt: skip


def _errors(figure: Any, drawn: Drawn) -> None:
    axis = figure.subplots()
    for method, own in drawn.paths.items():
        for passed in own:
            e = drawn.height(*passed.T)
            axis.plot(range(len(e)), e, color=COLORS[method], lw=1.8, marker="o", ms=2.6)
    saddle = next(w for label, w in drawn.critical.items() if label.startswith("saddle"))
    axis.axhline(float(drawn.height(*saddle)), color=INK, lw=1, ls="--")
    axis.set_xscale("symlog", linthresh=1)
    axis.set(yscale="log", xlabel="step", xlim=(0, None), ylim=(1e-12, None))
    axis.set_title("E at each step (dashed: at the saddle)", color=INK, fontsize=13)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#e6e9ed", lw=0.6)


def _map(axis: Axes, drawn: Drawn, method: str) -> None:
    w1, w2 = np.meshgrid(*2 * [np.linspace(*drawn.view, 201)])
    e = drawn.height(w1, w2)
    levels = float(e.max()) * np.linspace(0, 1, 22) ** 2.6
    axis.contourf(w1, w2, e, levels, cmap=GROUND, norm=_norm(e))
    axis.contour(w1, w2, e, levels[1:], colors="white", linewidths=0.5, alpha=0.6)
    for passed in drawn.paths[method]:
        axis.plot(
            *passed.T, color=COLORS[method], lw=1.8, marker="o", ms=4.2, mec="white", mew=0.6,
            markevery=_dots(passed), path_effects=CASING,
        )  # fmt: skip
        axis.plot(*passed[0], "s", color=INK, mec="white", ms=7)
    for label, w in drawn.critical.items():
        axis.plot(*w, _mark(label), color="white", mec=INK, mew=1.6, ms=8)
    axis.set(xlim=drawn.view, ylim=drawn.view, aspect="equal")
    axis.set_xlabel("$w_1$", fontsize=12)
    every = max(map(_dots, drawn.paths[method]))
    note = f" (a dot every {every} steps)" if every > 1 else ""
    axis.set_title(f"{method}{note}", color=INK, fontsize=13)
