"""Whether what a network ends in suits its loss, which takes logits or probabilities."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from fnn.arrays import is_floating
from fnn.block import Block, BlockValueError
from fnn.executor import is_network
from fnn.refusals import warn

PROBABILITIES = ("softmax", "logistic", "hard_sigmoid")  # makers of blocks with outputs in 0..1
SLACK = 1e-3  # of a probability: rounding, in 16 bits too


class Mismatch(NamedTuple):
    """A network that does not suit its loss: what is wrong, and what to do.

    ``certain``: whatever the predictions are. Otherwise they may happen to be probabilities.
    """

    what: str
    fix: str
    certain: bool


def last_block(net: Block) -> Block:
    """The block whose output is the network's; the network itself, where that is not one block.

    >>> import fnn
    >>> last_block(fnn.serial(fnn.relu(), fnn.freeze(fnn.layer(3, fnn.softmax())))).kind.maker
    'softmax'
    """
    if is_network(net) and net.graph is not None:
        made = {node.name: node.block for node in net.graph.nodes}
        (output, *more) = net.graph.outputs
        return net if more or output not in made else last_block(made[output])
    wraps = net.kind.maker in ("freeze", "rematerialize", "repeat") and net.kind.of
    return last_block(net.kind.of[0]) if wraps else net


def gives_probabilities(net: Block) -> bool:
    """Whether the network ends in a block that makes probabilities."""
    return last_block(net).kind.maker in PROBABILITIES


def mismatch(net: Block, loss: Block) -> Mismatch | None:
    """Why the network's ending and the loss do not go together; None where they do.

    >>> import fnn
    >>> mismatch(fnn.layer(3, fnn.softmax()), fnn.softmax_cross_entropy()).fix
    'leave out softmax, or use cross_entropy()'
    """
    last, takes = last_block(net), _takes(loss)
    squashes, end = last.kind.maker in PROBABILITIES, last.name
    if takes == "logits" and squashes:
        instead = ""
        if loss.kind.maker == "binary_cross_entropy":
            instead = ", or use binary_cross_entropy(from_logits=False)"
        elif last.kind.maker == "softmax":
            instead = ", or use cross_entropy()"
        what = f"the network ends in {end}, and {loss.name} takes logits"
        return Mismatch(what, f"leave out {end}{instead}", True)
    if takes == "probabilities" and not squashes:
        what = f"the network ends in {end}, and {loss.name} takes probabilities"
        return Mismatch(what, _to_probabilities(loss), False)
    return None


def warn_of_mismatch(net: Block, loss: Block) -> None:
    """Warns where a loss of logits would be given probabilities."""
    found = mismatch(net, loss)
    if found is not None and found.certain:
        warn(f"{found.what}: {found.fix}")


def require_probabilities(loss: Block, prediction: Any) -> None:
    """Refuses predictions that a loss of probabilities cannot take."""
    leaves = [np.asarray(y, np.float64) for y in jax.tree.leaves(prediction) if is_floating(y)]
    low = min((float(y.min()) for y in leaves if y.size), default=0.0)
    high = max((float(y.max()) for y in leaves if y.size), default=0.0)
    if low < -SLACK or high > 1 + SLACK:
        raise BlockValueError(
            loss.name,
            f"predictions go from {low:.2g} to {high:.2g}, needs probabilities: "
            f"{_to_probabilities(loss)}",
        )


def _takes(loss: Block) -> str:
    maker, args = loss.kind.maker, loss.kind.args
    if maker == "softmax_cross_entropy" or (maker == "binary_cross_entropy" and args == (True,)):
        return "logits"
    return "probabilities" if maker in ("cross_entropy", "binary_cross_entropy") else ""


def _to_probabilities(loss: Block) -> str:
    if loss.kind.maker == "cross_entropy":
        return "end the network in softmax(), or use softmax_cross_entropy()"
    return "end the network in logistic(), or use binary_cross_entropy()"
