"""The contenders of the MLP benchmark: one network and one optimiser, written in each library.

Each trains from the same weights, on the same order of all examples (the last, smaller batch
too), in float32, by the same SGD with momentum. Each takes the fastest form in its library's
documentation; its label in the table names the form.

Libraries are imported inside functions: a missing one costs a row, not the table, and a process
that measures one library does not pay for the import of another.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Weights = list[tuple[Array, Array]]  # of each layer: w (in, out) and b (out,), float32


@dataclass(frozen=True)
class Problem:
    """The network, the optimiser and the machine, the same for every contender.

    sizes: the widths from the input to the classes, for example (784, 128, 64, 10).
    device: "cpu", or "gpu" for the contenders that can.
    """

    sizes: tuple[int, ...]
    batch: int
    learning_rate: float = 0.1
    momentum: float = 0.9
    threads: int = 1
    device: str = "cpu"

    def flops(self, examples: int) -> int:
        """Floating-point operations of the matrix products in one epoch.

        Per example and weight: 2 forward, 2 for the weight's gradient, 2 for the input's
        gradient, except in the first layer, whose input needs none.
        """
        per_layer = [i * o for i, o in pairwise(self.sizes)]
        return examples * (6 * sum(per_layer) - 2 * per_layer[0])


class Trainer(Protocol):
    """Trains one contender. Called in this order: start, load, then epoch and accuracy."""

    def start(self, weights: Weights) -> None:
        """Starts training afresh from these weights; neither keeps nor changes the arrays."""

    def prepare(self, examples: int, test_examples: int) -> None:
        """Optional, before load: compiles ahead of time, if the library can."""
        return

    def load(self, x: Array, target: Array, test_x: Array, test_target: Array) -> None:
        """Makes the data resident: float32 (n, sizes[0]) and int32 (n,)."""

    def epoch(self, order: Array) -> Array:
        """One pass over the training examples in this order, int32 (n,).

        Returns, when all work is done, the losses of the steps, or their mean if the library
        reports no more.
        """

    def accuracy(self) -> float:
        """The accuracy on the test examples, 0 to 1."""

    def weights(self) -> Weights:
        """The trained weights, copied."""

    def temporary_bytes(self) -> int | None:
        """Temporary memory of the compiled epoch; None if unknown."""
        return None


class Contender(NamedTuple):
    """make: imports the library and builds the trainer. label: its name in the table.

    trains: False for a bound, which only does a part of the work.
    """

    make: Callable[[Problem], Trainer]
    label: str
    trains: bool = True


def he_normal(sizes: Sequence[int], seed: int = 0) -> Weights:
    """The initial weights of all contenders (He et al. 2015), by NumPy."""
    rng = np.random.default_rng(seed)
    return [
        ((rng.standard_normal((i, o)) * np.sqrt(2 / i)).astype(np.float32), np.zeros(o, np.float32))
        for i, o in pairwise(sizes)
    ]


# ---------------------------------------------------------------- fnn and the JAX libraries

Step = Callable[[Any, Any, Any, Any], tuple[Any, Any, Any]]


def scan_epoch(step: Step, batch: int) -> Any:
    """The jitted epoch of the JAX peers: the scan and the slicing of `fnn.make_epoch`.

    step: (params, state, x, target) -> (params, state, loss).
    """
    import jax
    import jax.numpy as jnp

    @jax.jit
    def epoch(params: Any, state: Any, x: Any, target: Any, order: Any) -> Any:
        def body(carry: Any, rows: Any) -> Any:
            batch = (a.at[rows].get(mode="promise_in_bounds") for a in (x, target))
            params, state, loss = step(*carry, *batch)
            return (params, state), loss

        full = len(order) // batch * batch
        carry, losses = jax.lax.scan(body, (params, state), order[:full].reshape(-1, batch))
        if full < len(order):
            carry, last = body(carry, order[full:])
            losses = jnp.append(losses, last)
        return *carry, losses

    return epoch


class JaxTrainer:
    """Trains any JAX library's network with an epoch that is one compiled program.

    features: of each example.
    shapes: the parameters as a pytree of `jax.ShapeDtypeStruct`: for each layer, in order, a leaf
        with two axes and a leaf with one.
    init: params -> optimiser state.
    epoch: jitted, (params, state, x, target, order) -> (params, state, losses).
    logits: (params, x) -> (n, classes).
    out_in: whether the library stores weights as (out, in).
    """

    def __init__(
        self, features: int, shapes: Any, init: Any, epoch: Any, logits: Any, out_in: bool = False
    ) -> None:
        import jax

        def accuracy(params: Any, x: Any, target: Any) -> Any:
            return (logits(params, x).argmax(-1) == target).mean()

        self.jax, self.features, self.shapes, self.out_in = jax, features, shapes, out_in
        # One program each: eager operations would be compiled one by one.
        self.init, self.jitted, self.jitted_accuracy = jax.jit(init), epoch, jax.jit(accuracy)
        self.compiled: Any = None
        self.compiled_accuracy: Any = None

    def start(self, weights: Weights) -> None:
        ws, bs = iter([w for w, _ in weights]), iter([b for _, b in weights])

        def fill(leaf: Any) -> Array:
            value = next(bs) if len(leaf.shape) == 1 else next(ws)
            value = value.T if self.out_in else value
            if value.shape != leaf.shape:
                raise ValueError(f"layers out of order: {value.shape} for {leaf.shape}")
            return np.array(value, order="C")  # a copy, as JAX may adopt NumPy's memory

        self.params = self.jax.device_put(self.jax.tree.map(fill, self.shapes))
        self.state = self.init(self.params)

    def prepare(self, examples: int, test_examples: int) -> None:
        struct = self.jax.ShapeDtypeStruct
        train, test = (
            (struct((n, self.features), "float32"), struct((n,), "int32"))
            for n in (examples, test_examples)
        )
        lowered = (
            self.jitted.lower(self.params, self.state, *train, train[1]),
            self.jitted_accuracy.lower(self.params, *test),
        )
        with ThreadPoolExecutor() as pool:  # XLA compiles without the GIL
            self.compiled, self.compiled_accuracy = pool.map(lambda low: low.compile(), lowered)

    def load(self, x: Array, target: Array, test_x: Array, test_target: Array) -> None:
        put = self.jax.device_put
        self.train, self.test = put((x, target)), put((test_x, test_target))
        self.jax.block_until_ready((self.train, self.test))

    def epoch(self, order: Array) -> Array:
        if self.compiled is None:  # ahead of time, for temporary_bytes
            lowered = self.jitted.lower(self.params, self.state, *self.train, order)
            self.compiled = lowered.compile()
        self.params, self.state, losses = self.compiled(self.params, self.state, *self.train, order)
        self.jax.block_until_ready((self.params, self.state))
        return np.asarray(losses)

    def accuracy(self) -> float:
        program = self.compiled_accuracy or self.jitted_accuracy
        return float(program(self.params, *self.test))

    def weights(self) -> Weights:
        leaves = [np.array(leaf) for leaf in self.jax.tree.leaves(self.params)]
        ws = [leaf.T if self.out_in else leaf for leaf in leaves if leaf.ndim == 2]
        return list(zip(ws, (leaf for leaf in leaves if leaf.ndim == 1), strict=True))

    def temporary_bytes(self) -> int | None:
        memory = self.compiled.memory_analysis() if self.compiled is not None else None
        return None if memory is None else int(memory.temp_size_in_bytes)


def fnn_trainer(problem: Problem) -> Trainer:
    """fnn as in its documentation."""
    import jax

    import fnn

    net = fnn.models.mlp(problem.sizes[1:], fnn.relu())
    optimizer = fnn.sgd(problem.learning_rate, momentum=problem.momentum)
    epoch = fnn.make_epoch(net, fnn.softmax_cross_entropy(), optimizer, problem.batch)
    x = jax.ShapeDtypeStruct((problem.batch, problem.sizes[0]), "float32")
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), x))

    def logits(params: Any, x: Any) -> Any:
        return net.forward(params, x)[0]

    return JaxTrainer(problem.sizes[0], shapes, optimizer.init, epoch, logits)


def plain_jax(problem: Problem) -> Trainer:
    """JAX alone: `jax.value_and_grad`, and SGD in two lines."""
    import jax
    import jax.numpy as jnp

    def logits(params: Any, x: Any) -> Any:
        *hidden, last = params
        for layer in hidden:
            x = jax.nn.relu(x @ layer["w"] + layer["b"])
        return x @ last["w"] + last["b"]

    def loss(params: Any, x: Any, target: Any) -> Any:
        z = logits(params, x)
        # The gradient of a sum over one-hot rows is a product; an index would give a scatter.
        picked = jnp.sum(z * jax.nn.one_hot(target, z.shape[-1], dtype=z.dtype), axis=-1)
        return jnp.mean(jax.nn.logsumexp(z, axis=-1) - picked)

    def step(params: Any, velocity: Any, x: Any, target: Any) -> tuple[Any, Any, Any]:
        value, grads = jax.value_and_grad(loss)(params, x, target)
        velocity = jax.tree.map(lambda v, g: problem.momentum * v + g, velocity, grads)
        params = jax.tree.map(lambda p, v: p - problem.learning_rate * v, params, velocity)
        return params, velocity, value

    shape = partial(jax.ShapeDtypeStruct, dtype="float32")
    shapes = [{"w": shape((i, o)), "b": shape((o,))} for i, o in pairwise(problem.sizes)]

    def init(params: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, params)

    return JaxTrainer(problem.sizes[0], shapes, init, scan_epoch(step, problem.batch), logits)


def products(problem: Problem) -> Trainer:
    """The matrix products of a step and the reading of its rows, without anything between them.

    Every library computes these, so none can be faster than they are in the same XLA.
    """
    import jax
    import jax.numpy as jnp

    def forward(params: Any, x: Any) -> list[Any]:
        ys = [x]
        for layer in params:
            ys.append(ys[-1] @ layer["w"])
        return ys

    def step(params: Any, _: Any, x: Any, target: Any) -> tuple[Any, Any, Any]:
        *inputs, dy = forward(params, x)
        grads = []
        for layer, y in zip(reversed(params), reversed(inputs), strict=True):
            grads.append(layer | {"w": y.T @ dy})
            dy = dy @ layer["w"].T if y is not x else dy
        # One entry of each is used: behind the barrier XLA computes the others, too.
        grads = jax.lax.optimization_barrier(grads[::-1])
        return params, grads, sum(grad["w"][0, 0] for grad in grads)

    shape = partial(jax.ShapeDtypeStruct, dtype="float32")
    shapes = [{"w": shape((i, o)), "b": shape((o,))} for i, o in pairwise(problem.sizes)]

    def init(params: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, params)

    def logits(params: Any, x: Any) -> Any:
        return forward(params, x)[-1]

    return JaxTrainer(problem.sizes[0], shapes, init, scan_epoch(step, problem.batch), logits)


def equinox(problem: Problem) -> Trainer:
    """Equinox with Optax, the model partitioned into arrays (scanned over) and the rest."""
    import equinox as eqx
    import jax
    import optax

    def build() -> Any:
        layers: list[Any] = []
        for i, o in pairwise(problem.sizes):
            layers += [eqx.nn.Linear(i, o, key=jax.random.key(0)), eqx.nn.Lambda(jax.nn.relu)]
        return eqx.nn.Sequential(layers[:-1])

    model = eqx.filter_eval_shape(build)
    shapes, static = eqx.partition(model, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    optimizer = optax.sgd(problem.learning_rate, momentum=problem.momentum)

    def logits(params: Any, x: Any) -> Any:
        return jax.vmap(eqx.combine(params, static))(x)

    def loss(params: Any, x: Any, target: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), target).mean()

    def step(params: Any, state: Any, x: Any, target: Any) -> tuple[Any, Any, Any]:
        value, grads = eqx.filter_value_and_grad(loss)(params, x, target)
        updates, state = optimizer.update(grads, state, params)
        return eqx.apply_updates(params, updates), state, value

    epoch = scan_epoch(step, problem.batch)
    return JaxTrainer(problem.sizes[0], shapes, optimizer.init, epoch, logits, out_in=True)


def flax_nnx(problem: Problem) -> Trainer:
    """Flax NNX with Optax: the functional training loop of its performance guide, scanned."""
    import optax
    from flax import nnx

    class MLP(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            sizes = pairwise(problem.sizes)
            self.layers = nnx.List([nnx.Linear(i, o, rngs=rngs) for i, o in sizes])

        def __call__(self, x: Any) -> Any:
            *hidden, last = self.layers
            for layer in hidden:
                x = nnx.relu(layer(x))
            return last(x)

    def with_optimizer(model: Any) -> tuple[Any, Any]:
        transformation = optax.sgd(problem.learning_rate, momentum=problem.momentum)
        return model, nnx.Optimizer(model, transformation, wrt=nnx.Param)

    def split(model_and_optimizer: Any) -> Any:
        """(graph definition, parameters, state of the optimiser)"""
        return nnx.split(model_and_optimizer, nnx.Param, ...)

    def loss(model: Any, x: Any, target: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(model(x), target).mean()

    def step(params: Any, state: Any, x: Any, target: Any) -> tuple[Any, Any, Any]:
        model, optimizer = nnx.merge(both, params, state)
        value, grads = nnx.value_and_grad(loss)(model, x, target)
        optimizer.update(model, grads)
        return *split((model, optimizer))[1:], value

    def init(params: Any) -> Any:
        model, _ = nnx.merge(both, params, rest)
        return split(with_optimizer(model))[2]

    def logits(params: Any, x: Any) -> Any:
        return nnx.merge(both, params, rest)[0](x)

    abstract = nnx.eval_shape(lambda: with_optimizer(MLP(nnx.Rngs(0))))
    both, shapes, rest = split(abstract)
    return JaxTrainer(problem.sizes[0], shapes, init, scan_epoch(step, problem.batch), logits)


# ---------------------------------------------------------------- PyTorch


class TorchTrainer(Trainer):
    """PyTorch: data resident, permuted by one indexing per epoch, then sliced."""

    def __init__(self, problem: Problem, compiled: bool) -> None:
        import torch

        torch.set_num_threads(problem.threads)
        self.torch, self.batch = torch, problem.batch
        self.device = "cuda" if problem.device == "gpu" else "cpu"
        if self.device == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32, as JAX does by default
        layers: list[Any] = []
        for i, o in pairwise(problem.sizes):
            layers += [torch.nn.Linear(i, o, device=self.device), torch.nn.ReLU()]
        self.net = torch.nn.Sequential(*layers[:-1])
        self.optimizer = torch.optim.SGD(
            self.net.parameters(), problem.learning_rate, problem.momentum, fused=True
        )

        def loss(x: Any, target: Any) -> Any:
            return torch.nn.functional.cross_entropy(self.net(x), target)

        self.loss = loss
        if compiled:
            # Its cache on disk would hide the compilation from the first epoch.
            torch.compiler.config.force_disable_caches = True
            warnings.filterwarnings("ignore", "dynamo_pgo force disabled")
            # dynamic=False: one program for the batch and one for the smaller last batch.
            self.loss = torch.compile(loss, dynamic=False)

    def start(self, weights: Weights) -> None:
        with self.torch.no_grad():
            parameters = iter(self.net.parameters())
            for w, b in weights:
                next(parameters).copy_(self.torch.from_numpy(w.T))
                next(parameters).copy_(self.torch.from_numpy(b))
        self.optimizer.state.clear()

    def load(self, x: Array, target: Array, test_x: Array, test_target: Array) -> None:
        def put(array: Array, dtype: Any) -> Any:
            return self.torch.from_numpy(array).to(self.device, dtype)

        float32, int64 = self.torch.float32, self.torch.int64
        self.train = put(x, float32), put(target, int64)
        self.test = put(test_x, float32), put(test_target, int64)

    def epoch(self, order: Array) -> Array:
        rows = self.torch.from_numpy(order).to(self.device)
        x, target = (array[rows] for array in self.train)
        losses = []
        for at in range(0, len(rows), self.batch):
            loss = self.loss(x[at : at + self.batch], target[at : at + self.batch])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.detach())
        curve: Array = self.torch.stack(losses).cpu().numpy()  # waits for the device
        return curve

    def accuracy(self) -> float:
        x, target = self.test
        with self.torch.inference_mode():
            return float((self.net(x).argmax(-1) == target).float().mean())

    def weights(self) -> Weights:
        arrays = [p.detach().cpu().numpy().copy() for p in self.net.parameters()]
        return [(w.T, b) for w, b in zip(arrays[::2], arrays[1::2], strict=True)]


# ---------------------------------------------------------------- scikit-learn


class SklearnTrainer(Trainer):
    """scikit-learn's MLPClassifier; `partial_fit` is one pass in the given order."""

    def __init__(self, problem: Problem) -> None:
        from sklearn.neural_network import MLPClassifier
        from threadpoolctl import threadpool_limits

        self.problem = problem
        threadpool_limits(problem.threads)  # in force to the end of the process
        self.net = MLPClassifier(
            problem.sizes[1:-1],
            solver="sgd",
            alpha=0,  # no weight decay
            batch_size=problem.batch,
            learning_rate_init=problem.learning_rate,
            momentum=problem.momentum,
            nesterovs_momentum=False,
            shuffle=False,  # the examples come shuffled
            n_iter_no_change=10**6,
        )

    def start(self, weights: Weights) -> None:
        classes = np.arange(self.problem.sizes[-1], dtype=np.int32)
        if not hasattr(self.net, "coefs_"):
            # The first fit, here of a batch of zeros, makes weights; ours then replace them.
            x = np.zeros((self.problem.batch, self.problem.sizes[0]), np.float32)
            self.net.partial_fit(x, np.zeros(len(x), np.int32), classes=classes)
        for i, (w, b) in enumerate(weights):
            self.net.coefs_[i][...], self.net.intercepts_[i][...] = w, b
        # Forgets the momentum: the next fit makes a new optimiser.
        self.net.__dict__.pop("_optimizer", None)

    def load(self, x: Array, target: Array, test_x: Array, test_target: Array) -> None:
        self.train, self.test = (x, target), (test_x, test_target)

    def epoch(self, order: Array) -> Array:
        x, target = self.train
        with warnings.catch_warnings():
            # scikit-learn answers Ctrl-C with a warning and goes on as if the epoch were done.
            warnings.filterwarnings("error", "Training interrupted by user")
            try:
                self.net.partial_fit(x[order], target[order])
            except UserWarning as warning:
                raise KeyboardInterrupt from warning
        return np.array([self.net.loss_])

    def accuracy(self) -> float:
        return float(self.net.score(*self.test))

    def weights(self) -> Weights:
        pairs = zip(self.net.coefs_, self.net.intercepts_, strict=True)
        return [(w.copy(), b.copy()) for w, b in pairs]


CONTENDERS: dict[str, Contender] = {
    "fnn": Contender(fnn_trainer, "fnn"),
    "jax": Contender(plain_jax, "JAX, jax.grad, same scan"),
    "equinox": Contender(equinox, "Equinox + Optax, same scan"),
    "flax": Contender(flax_nnx, "Flax NNX + Optax, same scan"),
    "torch": Contender(partial(TorchTrainer, compiled=False), "PyTorch eager, fused SGD"),
    "torch.compile": Contender(partial(TorchTrainer, compiled=True), "torch.compile, fused SGD"),
    "scikit-learn": Contender(SklearnTrainer, "scikit-learn, partial_fit"),
    "products": Contender(products, "the products alone, same scan", trains=False),
}
