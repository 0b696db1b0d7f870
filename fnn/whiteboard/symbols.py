# ruff: noqa: RUF001 - symbols are as on a board
"""What wires are called in formulas: the names of the trade, z, h, ŷ, t, and short names as given.

A wire has the name of the block that makes it. ``fnn.models.mlp`` calls its blocks ``hidden_1`` and
``tanh_1``; on a board one writes z₁ and h₁. Names of one or two letters are the author's own
symbols and stay; so do all names in networks with many layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from fnn.whiteboard.formulas import AFFINE, LOSSES, NONLINEARITIES, Described
from fnn.whiteboard.recording import Recording

MAX_AFFINE = 9  # layers in a network, up to which they are numbered: z₁ to z₉
SPELLED = {
    "yhat": "ŷ", "y_hat": "ŷ", "sigma": "σ", "alpha": "α", "beta": "β", "theta": "θ", "phi": "φ",
}  # fmt: skip
_DIGITS = "₁₂₃₄₅₆₇₈₉"

Wire = tuple[str, str]  # the path of its network, its name there


def symbols(whole: Recording) -> dict[Wire, str]:
    """The symbol of every wire in a trace.

    >>> import fnn, jax, jax.numpy as jnp
    >>> net, x = fnn.models.mlp((4, 2), fnn.tanh()), jnp.ones((1, 3))
    >>> params = net.init(jax.random.key(0), x)
    >>> trace = fnn.whiteboard.trace(net, params, x, jnp.array([0]), fnn.softmax_cross_entropy())
    >>> {wire: symbol for (_, wire), symbol in symbols(trace).items() if wire != symbol}
    {'target': 't', 'hidden_1': 'z₁', 'tanh_1': 'h₁', 'out': 'z₂', 'net': 'z₂'}
    """
    nodes = (whole, *whole.walk())
    taken = {_own(name) for node in nodes for name in (node.name, *node.inputs)}
    affine = [node.path for node in nodes if not node.nodes and _makes(node.block, AFFINE)]
    if len(affine) > MAX_AFFINE or taken & {"z", "h"}:
        affine = []
    digits = _DIGITS if len(affine) > 1 else ("",)
    z = dict(zip(affine, digits, strict=False))
    result, called = _result(whole)

    def symbol(node: Recording, reads: list[str]) -> str:
        after_z = bool(reads) and reads[0][:1] == "z" and reads[0][1:] in z.values()
        if node.path in z:
            new = f"z{z[node.path]}"
        elif after_z and _makes(node.block, NONLINEARITIES):
            new = f"h{reads[0][1:]}"
        else:
            return _own(node.name)
        new = called if called and node.path == result else new
        own = _own(node.name)
        return own if len(own) <= 2 or new in taken else new

    wires = {(whole.path, name): _own(name) for name in whole.inputs}
    if whole.objective == "E" and "t" not in taken and "target" in whole.inputs:
        wires[whole.path, "target"] = "t"
    _name(whole, wires, symbol)
    return wires


def _result(whole: Recording) -> tuple[str, str]:
    """The path of the block that makes the prediction, and its symbol: ŷ, or y without a loss.

    The symbol is '' for the logits that a loss reads: they are a z.
    """
    if whole.objective != "E":
        return (_maker_of(whole, whole.outputs[0]), "y") if len(whole.outputs) == 1 else ("", "")
    losses = [node for node in whole.nodes if node.block.maker in LOSSES]
    if len(losses) != 1:
        return "", ""
    (loss,) = losses
    maker, args = loss.block.maker, loss.block.args
    logits = maker == "softmax_cross_entropy" or (
        maker == "binary_cross_entropy" and args[:1] != (False,)
    )
    return _maker_of(whole, loss.reads[0]), "" if logits else "ŷ"


def _maker_of(network: Recording, wire: str) -> str:
    """The path of the block, inside all networks, whose value a wire has."""
    for node in network.nodes:
        if node.name == wire:
            return _maker_of(node, node.outputs[0]) if len(node.outputs) == 1 else node.path
    return ""


def _name(
    network: Recording, wires: dict[Wire, str], symbol: Callable[[Recording, list[str]], str]
) -> None:
    """Adds the wires of a network whose inputs have their names."""
    for node in network.nodes:
        reads = [wires[network.path, name] for name in node.reads]
        if not node.nodes:
            wires[network.path, node.name] = symbol(node, reads)
            continue
        outside = reads if len(node.inputs) == len(reads) else node.inputs
        wires |= {
            (node.path, name): other for name, other in zip(node.inputs, outside, strict=True)
        }
        _name(node, wires, symbol)
        own, inside = _own(node.name), [wires[node.path, name] for name in node.outputs]
        named = len(inside) == 1 and inside[0] != _own(node.outputs[0]) and len(own) > 2
        wires[network.path, node.name] = inside[0] if named else own


def late_inputs(trace: Recording) -> list[str]:
    """The inputs that stand beside their reader: targets and weights of a loss, constants."""
    readers = {name: [n for n in trace.nodes if name in n.reads] for name in trace.inputs}
    return [
        name for name, nodes in readers.items()
        if nodes and (is_number(name) or (
            all(n.block.maker in (*LOSSES, "deep_supervision") for n in nodes)
            and any(name not in n.reads[:1] for n in nodes)
        ))
    ]  # fmt: skip


def is_number(name: str) -> bool:
    """Whether an input is a constant of an expression, which has its value for a name.

    >>> is_number("1"), is_number("0.5′"), is_number("x")
    (True, True, False)
    """
    try:
        return math.isfinite(float(name.rstrip("′")))  # equal ones have primes
    except ValueError:
        return False


def _own(name: str) -> str:
    return SPELLED.get(name, name)


def _makes(kind: Described, makers: tuple[str, ...]) -> bool:
    """Whether the block, or the one it wraps, is one of these."""
    wrapped = kind.of if kind.maker in ("freeze", "rematerialize") else ()
    return kind.maker in makers or any(_makes(inner, makers) for inner in wrapped)
