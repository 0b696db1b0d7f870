"""The landscape of the loss: non-convexity, saddle points, minima that are about the same.

    python -m experiments landscape surface
    python -m experiments landscape linear
    python -m experiments landscape saddles
    python -m experiments landscape escape
    python -m experiments landscape minima
    python -m experiments landscape connected
    python -m experiments landscape plane
    python -m experiments landscape spectrum

Each study writes its figures, its numbers as CSV, and its section of report.html, which tells the
story in order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import tyro

from experiments.landscape.connected import Connected, connected
from experiments.landscape.escape import Escape, escape
from experiments.landscape.linear import Linear, linear
from experiments.landscape.minima import Minima, minima
from experiments.landscape.plane import Plane, plane
from experiments.landscape.saddles import Saddles, saddles
from experiments.landscape.spectrum import Spectrum, spectrum
from experiments.landscape.study import Study
from experiments.landscape.surface import Surface, surface

# A study is a dataclass of its options and a function.
STUDIES: dict[type, Callable[[Any], int]] = {
    Surface: surface,
    Linear: linear,
    Saddles: saddles,
    Escape: escape,
    Minima: minima,
    Connected: connected,
    Plane: plane,
    Spectrum: spectrum,
}

Options = (
    Annotated[Surface, tyro.conf.subcommand("surface", prefix_name=False)]
    | Annotated[Linear, tyro.conf.subcommand("linear", prefix_name=False)]
    | Annotated[Saddles, tyro.conf.subcommand("saddles", prefix_name=False)]
    | Annotated[Escape, tyro.conf.subcommand("escape", prefix_name=False)]
    | Annotated[Minima, tyro.conf.subcommand("minima", prefix_name=False)]
    | Annotated[Connected, tyro.conf.subcommand("connected", prefix_name=False)]
    | Annotated[Plane, tyro.conf.subcommand("plane", prefix_name=False)]
    | Annotated[Spectrum, tyro.conf.subcommand("spectrum", prefix_name=False)]
)


def main(options: Study) -> int:
    options.prepare()
    return STUDIES[type(options)](options)
