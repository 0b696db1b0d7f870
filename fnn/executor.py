"""The one executor: a graph of named blocks, forward in order, backward in reverse.

This is the only place in fnn where the chain rule is applied to more than one block:
every node's upstream cotangent goes through that node's own ``backward``, and where a value
forks its cotangents add. ``serial``, ``fan_out``, ``residual``, networks with their losses:
all are graphs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from fnn.again import MAKERS, Output
from fnn.arguments import checked
from fnn.block import (
    Block,
    BlockTypeError,
    BlockValueError,
    Graph,
    Key,
    Kind,
    Node,
    Params,
    Residuals,
    Rules,
    ValidateRule,
    Value,
    explain_depth,
    located,
)
from fnn.contract import RULES, run_backward, run_forward, run_init
from fnn.refusals import (
    as_held,
    described,
    require_block,
    require_key,
    require_no_model,
    require_numbers,
)

GRAPH = Kind("graph")

# No two uses of randomness share a key: node i's init folds i into its graph's key, its forward
# this plus i, and fit's epochs count down from 2^32.
FORWARD = 2**31

_MISSING = object()
_BACKWARD = "y, residuals = forward(params, x), then backward(params, residuals, dy)"

Names = str | Sequence[str]
Entry = tuple[str, Block, Names] | tuple[str, Block, Names, str]  # what graph takes for a node


def graph(
    inputs: Names,
    nodes: Sequence[Entry],
    outputs: Names,
    *,
    at_inference: Names | None = None,
    name: str = "graph",
) -> Block:
    """A block made of named blocks, wired in any acyclic way.

    Args:
      inputs: name of the input, or names where the graph takes a tuple.
      nodes: ``(name, block, input_names)`` each, in order of computation; a fourth entry names
        another node whose parameters this one uses (sharing: their gradients add). A node with one
        input name gets that value itself, with several a tuple.
      outputs: name of the node (or input) that is the output, or names for a tuple.
      at_inference: names of the outputs that :func:`inference` keeps, all by default. Nodes that
        only the others need (auxiliary heads) do not run there, and their parameters may be
        missing.
      name: the block's label.

    Returns:
      A block. ``params`` is a dict keyed by the names of the nodes that have parameters;
      ``residuals`` a dict of every node's residuals, where an input that is kept and that tanh or
      logistic gave is marked, as it may be computed again (:mod:`fnn.again`).

    Raises:
      BlockValueError, BlockTypeError: a name that is repeated, unknown, read before it is
        computed, or never read; an entry that is not a block.

    Example: the lecture's circuit f = (x + y) z at -2, 5, -4.

    >>> import fnn
    >>> f = fnn.graph(("x", "y", "z"),
    ...               [("q", fnn.add(), ("x", "y")), ("f", fnn.multiply(), ("q", "z"))], "f")
    >>> value, residuals = f.forward({}, (-2.0, 5.0, -4.0))
    >>> float(value)
    -12.0
    >>> [float(d) for d in f.backward({}, residuals, 1.0)[1]]
    [-4.0, -4.0, 3.0]
    """
    if not isinstance(name, str) or not isinstance(nodes, (list, tuple)):
        raise BlockTypeError(
            "graph",
            f"nodes is {nodes!r:.60} and name {name!r:.60}, needs a list "
            "of nodes, such as [('h', linear(4), 'x')], and text",
        )
    read, made = _names(name, "inputs", inputs), _names(name, "outputs", outputs)
    kept = made if at_inference is None else _names(name, "at_inference", at_inference)
    entries = tuple(_node(name, entry) for entry in nodes)
    structure = Graph(read, entries, made, kept)
    _check(structure, name)
    # Sharing with a node that itself shares is sharing with the node that has the parameters.
    owner: dict[str, str] = {}
    for node in entries:
        owner[node.name] = owner.get(node.params_of, node.params_of)
    shared = tuple(node._replace(params_of=owner[node.name]) for node in entries)
    return _Executor(structure._replace(nodes=shared), name).block()


@dataclass(frozen=True, eq=False)
class _Executor:
    """The functions of a graph's block."""

    graph: Graph
    name: str

    @functools.cached_property
    def live(self) -> list[tuple[int, Node]]:
        return _live(self.graph)

    @functools.cached_property
    def blocks(self) -> dict[str, Block]:
        return {node.name: node.block for node in self.graph.nodes}

    def start(self, key: jax.Array, x: Value) -> tuple[Params, Value]:
        """The first parameters, and the shape of y."""
        require_key(self.name, key, "init(key, x)")
        require_numbers(self.name, "x", x, or_shapes=True)
        values = _bind(self.graph.inputs, as_held(x), self.name)
        params: dict[str, Params] = {}
        for i, node in self.live:
            node_x, block = _pick(values, node.inputs), node.block
            inner, is_own = _owner(block.init), node.params_of == node.name
            with located(node.name):
                node_key = jax.random.fold_in(key, i)
                if is_own and inner is not None and inner is _owner(block.forward):
                    # Not init and then forward: each level of nesting would run all below twice.
                    node_params, values[node.name] = inner.start(node_key, node_x)
                else:
                    node_params = run_init(block, node_key, node_x) if is_own else {}
                    # Shape-check the last node too, so that init reports misfits.
                    shared = params.get(node.params_of, node_params)
                    forward = functools.partial(run_forward, block)
                    values[node.name] = jax.eval_shape(forward, shared, node_x, node_key)[0]
                if jax.tree.leaves(node_params):
                    params[node.name] = node_params
        return params, _pick(values, self.graph.outputs)

    def init(self, key: jax.Array, x: Value = None) -> Params:
        return self.start(key, x)[0]

    def forward(self, params: Params, x: Value = None, key: Key = None) -> tuple[Value, Residuals]:
        check_params(self.graph, params, self.name)
        if key is not None:
            require_key(self.name, key)
        values = _bind(self.graph.inputs, as_held(x), self.name)
        units: set[str] = set()  # that keep their input
        residuals: dict[str, Residuals] = {}
        for i, node in self.live:
            x = _pick(values, node.inputs)
            with located(node.name):
                values[node.name], kept = run_forward(
                    node.block,
                    params.get(node.params_of, {}),
                    x,
                    None if key is None else jax.random.fold_in(key, np.uint32(FORWARD + i)),
                )
            if kept is x and node.inputs[0] in units:
                kept = Output(x)
            elif kept is x and node.block.kind.maker in MAKERS:
                units.add(node.name)
            residuals[node.name] = kept
        return _pick(values, self.graph.outputs), residuals

    def backward(
        self, params: Params, residuals: Residuals = None, dy: Value = _MISSING
    ) -> tuple[Params, Value]:
        # forward: every value goes to its readers, so a node's upstream cotangent is the sum of
        # what its readers send back. In reverse order all of them have been run before it.
        check_params(self.graph, params, self.name)
        self.check_residuals(residuals)
        if dy is _MISSING:
            raise BlockTypeError(self.name, f"got no dy, needs that of y: {_BACKWARD}")
        outputs = self.graph.outputs
        if len(outputs) > 1 and (not isinstance(dy, (tuple, list)) or len(dy) != len(outputs)):
            raise BlockTypeError(
                self.name, f"dy is {described(dy)}, needs a tuple, one for each of {list(outputs)}"
            )
        cotangents: dict[str, Value] = {}
        dparams: Params = dict.fromkeys(params)
        _send(cotangents, outputs, as_held(dy))
        for _, node in reversed(self.live):
            upstream = cotangents.get(node.name)
            if upstream is None:  # no output with a gradient depends on this value
                continue
            kept = residuals[node.name]
            with located(node.name):
                if isinstance(kept, Output):
                    unit = node.inputs[0]
                    kept = kept.again(self.blocks[unit], residuals[unit], upstream)
                node_dparams, node_dx = run_backward(
                    node.block, params.get(node.params_of, {}), kept, upstream
                )
                _require_one_each(node, node_dx)
            _send(cotangents, node.inputs, node_dx)
            if node.params_of in dparams:
                dparams[node.params_of] = _plus(dparams[node.params_of], node_dparams)
        return dparams, _pick(cotangents, self.graph.inputs)

    def check_residuals(self, residuals: Residuals) -> None:
        """Refuses what forward did not return."""
        names = {node.name for _, node in self.live}
        if not isinstance(residuals, Mapping) or not names <= residuals.keys():
            raise BlockTypeError(
                self.name,
                f"residuals are {described(residuals)}, need what forward returned: {_BACKWARD}",
            )

    def update_statistics(self, params: Params, residuals: Residuals) -> Params:
        updated = dict(params)
        for _, node in self.live:
            if (rule := node.block.rules.update_statistics) is not None:
                updated[node.params_of] = rule(updated[node.params_of], residuals[node.name])
        return updated

    def block(self, kind: Kind = GRAPH, validate: ValidateRule | None = None) -> Block:
        moves = any(node.block.rules.update_statistics is not None for _, node in self.live)
        update = self.update_statistics if moves else None
        rules = Rules(validate=validate, update_statistics=update)
        return Block(self.init, self.forward, self.backward, self.name, kind, self.graph, rules)


def is_network(block: Block) -> bool:
    """Whether the block runs as the nodes of its graph.

    A graph whose forward or backward was replaced does not: it counts as a single block.
    """
    owner = _owner(block.forward)
    return owner is not None and owner.graph is block.graph and owner is _owner(block.backward)


def _owner(function: Callable[..., object]) -> _Executor | None:
    """The executor that a function is a method of."""
    owner = getattr(function, "__self__", None)
    return owner if isinstance(owner, _Executor) else None


@checked
def inference(block: Block) -> Block:
    """The block as it is at inference, with the same parameters.

    Dropout becomes the identity, batch_norm uses its running statistics, auxiliary heads disappear;
    a network is rebuilt from what its blocks become. No ``train`` flag runs through ``forward``.

    Args:
      block: any block.

    Returns:
      A block that takes the same parameters. The block itself, where it has no rule and no nodes.

    >>> import jax.numpy as jnp
    >>> from fnn import dropout, inference
    >>> y, _ = inference(dropout(0.5)).forward({}, jnp.ones(3))  # no key, nothing dropped
    >>> y
    Array([1., 1., 1.], dtype=float32)
    """
    return _at_inference(block)


def _at_inference(block: Block) -> Block:
    if block.rules.inference is not None:
        return block.rules.inference()
    if block.graph is None:
        return block
    structure = mapped(block, lambda _, inner: _at_inference(inner))
    return rebuilt(block, structure._replace(outputs=structure.at_inference))


@checked
def map_nodes(block: Block, change: Callable[[str, Block], Block]) -> Block:
    """The graph with every node's block replaced by ``change(name, block)``, wired as before.

    Because a network's structure is data, it can be rebuilt: as it is at inference, frozen, or with
    every block watched as the executor runs it.

    Args:
      block: a graph.
      change: from a node's name and block to another block.

    Returns:
      A graph of the same name, kind and wiring; an ``init`` that was replaced is kept.

    Raises:
      BlockTypeError: the block is not a graph, or has a forward or backward that is not its
        graph's.

    >>> import fnn
    >>> net = fnn.serial(a=fnn.square(), b=fnn.negate())
    >>> negated = fnn.map_nodes(net, lambda name, block: fnn.serial(block, fnn.negate()))
    >>> float(negated.forward({}, 3.0)[0])
    -9.0
    """
    return rebuilt(block, mapped(block, change))


def mapped(block: Block, change: Callable[[str, Block], Block]) -> Graph:
    """The structure of :func:`map_nodes`: what calls itself for the blocks inside goes by this and
    :func:`rebuilt`, with fewer of Python's calls within calls, of which there may be 1000."""
    structure = block.graph
    if structure is None:
        raise BlockTypeError(
            block.name,
            "is not a graph of blocks, so it has no nodes to map: give one made by graph or serial",
        )
    if not is_network(block):
        raise BlockTypeError(
            block.name,
            "has a forward or backward that is not its graph's and would be lost when it is "
            "rebuilt: detach the graph with block._replace(graph=None), or change a node instead",
        )
    nodes = []
    for node in structure.nodes:
        try:
            changed = change(node.name, node.block)
        except RecursionError as error:
            explain_depth(error)
            raise
        require_block(block.name, f"what node {node.name!r} is changed to", changed)
        nodes.append(node._replace(block=changed))
    return structure._replace(nodes=tuple(nodes))


def rebuilt(block: Block, structure: Graph) -> Block:
    """The block with another graph; an init of the user's own stays."""
    new = _Executor(structure, block.name).block(block.kind, block.rules.validate)
    return new if _owner(block.init) else new._replace(init=block.init)


def _pick(values: Mapping[str, Value], names: tuple[str, ...]) -> Value:
    """The value of a single name (None if it has none), or a tuple for several."""
    picked = tuple(values.get(name) for name in names)
    return picked[0] if len(picked) == 1 else picked


def _bind(names: tuple[str, ...], x: Value, block: str) -> dict[str, Value]:
    if len(names) == 1:
        return {names[0]: x}
    if not isinstance(x, (tuple, list)) or len(x) != len(names):
        raise BlockTypeError(
            block,
            f"x is {described(x)}, needs a tuple of {len(names)} inputs: ({', '.join(names)})",
        )
    return dict(zip(names, x, strict=True))


def _require_one_each(node: Node, dx: Value) -> None:
    """Refuses a cotangent of a block with several inputs that is not one for each."""
    count = len(node.inputs)
    if count > 1 and not (isinstance(dx, (tuple, list)) and len(dx) == count):
        raise BlockTypeError(
            node.block.name,
            f"backward returned {described(dx)} as dx, needs a tuple, one for each of {count} "
            f"inputs {RULES}",
        )


def _send(cotangents: dict[str, Value], names: tuple[str, ...], d: Value) -> None:
    """Adds ``d``, cotangents of the named values, to those that have arrived before."""
    for name, part in zip(names, (d,) if len(names) == 1 else d, strict=True):
        cotangents[name] = _plus(cotangents.get(name), part)


def _plus(a: Value, b: Value) -> Value:
    """The sum of two cotangents, leaf by leaf; None counts as zero."""
    if a is None or b is None:
        return b if a is None else a
    if jax.tree_util.all_leaves([a]):
        return a + b
    return jax.tree.map(_plus, a, b, is_leaf=lambda part: part is not a)  # one level down


def _live(g: Graph) -> list[tuple[int, Node]]:
    """The nodes that an output depends on, with their positions (folded into their keys)."""
    needed = set(g.outputs)
    live = []
    for i, node in reversed(list(enumerate(g.nodes))):
        if node.name in needed:
            needed.update(node.inputs)
            live.append((i, node))
    return live[::-1]


def _names(block: str, what: str, names: Names) -> tuple[str, ...]:
    if isinstance(names, str):
        return (names,)
    if not isinstance(names, (tuple, list)) or not names or isinstance(names, Block):
        raise BlockTypeError(block, f"{what} is {names!r:.60}, needs a name or a tuple of names")
    return tuple(names)


def _node(block: str, entry: Entry) -> Node:
    if not isinstance(entry, (tuple, list)) or len(entry) not in (3, 4):
        raise BlockTypeError(
            block,
            f"a node is (name, block, input_names) or (name, block, input_names, params_of), "
            f"got {described(entry)}: give one of the two forms",
        )
    name, node_block, inputs, *params_of = entry
    require_block(block, f"node {name!r}", node_block)
    read = _names(block, f"what node {name!r} reads", inputs)
    return Node(name, node_block, read, params_of[0] if params_of else name)


def _check(g: Graph, block: str) -> None:
    """Refuses a wiring that cannot run, or that has unused parts."""
    names: set[str] = set()
    for name in (*g.inputs, *(node.name for node in g.nodes)):
        if not isinstance(name, str) or not name or "/" in name:
            raise BlockValueError(block, f"{name!r} cannot be a name: it needs text without '/'")
        if name in names:
            raise BlockValueError(block, f"the name {name!r} is used twice: rename one")
        names.add(name)
    computed, made = set(g.inputs), set()
    for node in g.nodes:
        for read in node.inputs:
            if not isinstance(read, str) or read not in computed:
                later = isinstance(read, str) and read in names
                why = "is computed later" if later else "is not a node or input"
                raise BlockValueError(
                    block,
                    f"node {node.name!r} reads {read!r}, which {why}; it needs one of "
                    f"{sorted(computed)}",
                )
        computed.add(node.name)
        made.add(node.name)
        if not isinstance(node.params_of, str) or node.params_of not in made:
            raise BlockValueError(
                block,
                f"node {node.name!r} uses the parameters of {node.params_of!r}, "
                "needs the name of a node before it",
            )
    for output in (*g.outputs, *g.at_inference):
        if not isinstance(output, str) or output not in computed:
            raise BlockValueError(
                block, f"output {output!r} is not a node or input, needs one of {sorted(computed)}"
            )
    live = {node.name for _, node in _live(g)}
    for node in g.nodes:
        if node.name not in live:
            raise BlockValueError(
                block,
                f"no output depends on node {node.name!r} (outputs: {list(g.outputs)}); remove it "
                "or make it an output",
            )
    read_or_given = {name for node in g.nodes for name in node.inputs}.union(g.outputs)
    for name in g.inputs:
        if name not in read_or_given:
            raise BlockValueError(block, f"no node reads the input {name!r}; remove it")


def check_params(g: Graph, params: Params, block: str) -> None:
    """Refuses parameters of another network by their names; the blocks check shapes."""
    require_no_model(block, params)
    if not isinstance(params, Mapping):
        raise BlockTypeError(
            block,
            f"params is {described(params)}, needs a dict keyed by block name: make it with "
            "params = init(key, x), and call forward(params, x)",
        )
    unknown = sorted(set(params) - {node.params_of for node in g.nodes})
    if unknown:
        raise BlockValueError(
            block,
            f"params have entries {unknown} that no node here is named after; "
            f"nodes: {[node.name for node in g.nodes]}. Are they another network's parameters? "
            "Make some for this one with init(key, x)",
        )
