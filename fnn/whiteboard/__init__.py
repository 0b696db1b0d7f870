"""The whiteboard: a network's values and gradients, recorded and drawn.

``trace(net, params, x, target, loss)`` runs a network once, forward and backward, and records what
every block did; the trace draws itself: ``text()``, ``svg()``, ``html()``, ``mermaid()``.
``film(traces)`` plays several moments of training.
"""

from fnn.whiteboard.drawable import Trace as Trace
from fnn.whiteboard.film_page import film as film
from fnn.whiteboard.formulas import FORMULAS as FORMULAS
from fnn.whiteboard.formulas import Formula as Formula
from fnn.whiteboard.record import trace as trace

__all__ = ["FORMULAS", "Formula", "Trace", "film", "trace"]
