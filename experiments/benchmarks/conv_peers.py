"""Whole convolutional networks by fnn, plain JAX, Flax and PyTorch: programs to be timed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import fnn
from experiments.benchmarks.conv_cases import plain_cnn, plain_googlenet, plain_lrn, plain_max_pool
from experiments.benchmarks.timing import compiled, ready, stopwatch
from fnn.models.inception_v1 import INCEPTIONS

RATE, CNN_BATCH, SCANNED = 0.01, 64, 8


class Program(NamedTuple):
    """A program to be timed, the seconds of its compilation and its temporary bytes."""

    run: Callable[[], Any]
    compilation: float = 0.0
    temporary: int | None = None


Contenders = dict[str, Callable[[], Program]]


def comparisons(batch: int, pixels: int, dtype: str, threads: int) -> dict[str, Contenders]:
    """What is compared -> contender -> a function that makes its program."""
    cnn = fnn.models.cnn(hidden=0)
    google = fnn.models.googlenet(auxiliary=False, dropout_rate=0.0)
    small = (CNN_BATCH, 28, 28, 1)
    large = (batch, pixels, pixels, 3)
    on = f"batch {batch}, {pixels} pixels"
    flax, torch = "Flax NNX", "PyTorch eager, channels last"
    return {
        f"CNN, batch {CNN_BATCH}, a step": {
            **steps_of(cnn, plain_cnn, small, 10, dtype),
            flax: lambda: flax_step(flax_cnn, small, 10, dtype),
            torch: lambda: torch_step(torch_cnn, small, 10, threads, dtype),
        },
        f"CNN, batch {CNN_BATCH}, {SCANNED} steps in scan": steps_of(
            cnn, plain_cnn, small, 10, dtype, scan=SCANNED
        ),
        f"GoogLeNet, {on}, a step": {
            **steps_of(google, plain_googlenet, large, 1000, dtype),
            flax: lambda: flax_step(flax_googlenet, large, 1000, dtype),
            torch: lambda: torch_step(torch_googlenet, large, 1000, threads, dtype),
        },
        f"GoogLeNet, {on}, inference": {
            **inference_of(google, plain_googlenet, large, dtype),
            torch: lambda: torch_inference(large, threads, dtype),
        },
    }


def jitted(f: Callable[..., Any], *arguments: Any) -> Program:
    """``f`` compiled for these arguments, to be run on them."""
    program, seconds, temporary = compiled(f, *arguments)
    return Program(ready(program, *arguments), seconds, temporary)


def data(shape: tuple[int, ...], classes: int, dtype: str) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(np.float32)
    return jnp.asarray(x, dtype), jnp.asarray(rng.integers(0, classes, shape[0]), jnp.int32)


# ---- fnn and plain JAX -----------------------------------------------------------------------


def plain_loss(logits: Any, target: Any) -> Any:
    rows = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(rows, target[:, None], 1))


def sgd_step(gradient: Callable[..., Any]) -> Callable[..., Any]:
    """A step of SGD: (params, x, target) -> (params, loss)."""

    def step(params: Any, x: Any, target: Any) -> Any:
        value, grads = gradient(params, x, target)
        return jax.tree.map(lambda p, g: p - RATE * g, params, grads), value

    return step


def steps_of(
    net: Any, plain: Any, shape: tuple[int, ...], classes: int, dtype: str, scan: int = 0
) -> Contenders:
    """A step of SGD by hand and by ``jax.grad``; with ``scan``, that many steps in a loop."""
    x, target = data(shape, classes, dtype)
    params = jax.jit(net.init)(jax.random.key(0), x)

    def make(step: Any) -> Program:
        def steps(params: Any, x: Any, target: Any) -> Any:
            return lax.scan(lambda p, _: step(p, x, target), params, length=scan)

        return jitted(steps if scan else step, params, x, target)

    return {name: functools.partial(make, step) for name, step in both_steps(net, plain).items()}


def both_steps(net: Any, plain: Any) -> dict[str, Callable[..., Any]]:
    """A step of SGD, (params, x, target) -> (params, loss), by hand and by ``jax.grad``."""
    by_hand = fnn.value_and_grad(net, fnn.softmax_cross_entropy())
    by_autodiff = jax.value_and_grad(lambda p, x, t: plain_loss(plain(p, x), t))
    return {
        "fnn": sgd_step(lambda p, x, t: by_hand(p, x, t, jax.random.key(0))),
        "JAX, jax.grad": sgd_step(by_autodiff),
    }


def inference_of(net: Any, plain: Any, shape: tuple[int, ...], dtype: str) -> Contenders:
    """Logits of the network at inference."""
    x, _ = data(shape, 1000, dtype)
    params = jax.jit(net.init)(jax.random.key(0), x)
    reading = fnn.inference(net)
    forwards = {"fnn": lambda p, x: reading.forward(p, x)[0], "JAX, lax": plain}
    return {name: functools.partial(jitted, f, params, x) for name, f in forwards.items()}


# ---- Flax ------------------------------------------------------------------------------------


def flax_step(network: Any, shape: tuple[int, ...], classes: int, dtype: str) -> Program:
    """A step of SGD on a Flax NNX module, parameters as a pytree."""
    from flax import nnx

    x, target = data(shape, classes, dtype)
    graph, params = nnx.split(network(nnx.Rngs(0), jnp.dtype(dtype)))

    def loss(params: Any, x: Any, target: Any) -> Any:
        return plain_loss(nnx.merge(graph, params)(x), target)

    return jitted(sgd_step(jax.value_and_grad(loss)), params, x, target)


def flax_cnn(rngs: Any, dtype: Any) -> Any:
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self) -> None:
            self.conv_1 = nnx.Conv(1, 32, (3, 3), dtype=dtype, rngs=rngs)
            self.conv_2 = nnx.Conv(32, 64, (3, 3), dtype=dtype, rngs=rngs)
            self.out = nnx.Linear(3136, 10, dtype=dtype, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            for conv in (self.conv_1, self.conv_2):
                x = nnx.max_pool(nnx.relu(conv(x)), (2, 2), (2, 2))
            return self.out(x.reshape(len(x), -1))

    return Net()


def flax_googlenet(rngs: Any, dtype: Any) -> Any:
    from flax import nnx

    def conv(i: int, o: int, k: int, stride: int = 1, padding: Any = "SAME") -> Any:
        return nnx.Conv(i, o, (k, k), stride, padding=padding, dtype=dtype, rngs=rngs)

    class Inception(nnx.Module):
        def __init__(self, i: int, one: int, r3: int, three: int, r5: int, five: int, proj: int):
            self.one, self.proj = conv(i, one, 1), conv(i, proj, 1)
            self.r3, self.three = conv(i, r3, 1), conv(r3, three, 3)
            self.r5, self.five = conv(i, r5, 1), conv(r5, five, 5)

        def __call__(self, x: Any) -> Any:
            relu = nnx.relu
            branches = [
                relu(self.one(x)),
                relu(self.three(relu(self.r3(x)))),
                relu(self.five(relu(self.r5(x)))),
                relu(self.proj(plain_max_pool(x, 3, 1, "SAME"))),
            ]
            return jnp.concatenate(branches, -1)

    class Net(nnx.Module):
        def __init__(self) -> None:
            self.conv1 = conv(3, 64, 7, 2, ((3, 3), (3, 3)))
            self.reduce, self.conv2 = conv(64, 64, 1), conv(64, 192, 3)
            channels, modules = 192, {}
            for name, sizes in INCEPTIONS.items():
                modules[name] = Inception(channels, *sizes)
                channels = sizes[0] + sizes[2] + sizes[4] + sizes[5]
            self.modules_ = nnx.data(modules)
            self.out = nnx.Linear(channels, 1000, dtype=dtype, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = plain_lrn(plain_max_pool(nnx.relu(self.conv1(x)), 3, 2))
            x = nnx.relu(self.conv2(nnx.relu(self.reduce(x))))
            x = plain_max_pool(plain_lrn(x), 3, 2)
            for name, module in self.modules_.items():
                x = module(x)
                if name in ("3b", "4e"):
                    x = plain_max_pool(x, 3, 2)
            return self.out(jnp.mean(x, (1, 2)))

    return Net()


# ---- PyTorch ---------------------------------------------------------------------------------


def torch_step(
    network: Any, shape: tuple[int, ...], classes: int, threads: int, dtype: str
) -> Program:
    """A step of SGD on a PyTorch module in channels-last memory."""
    import torch

    net, x, target = _torch(network, shape, classes, threads)
    optimizer = torch.optim.SGD(net.parameters(), RATE, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = torch.nn.functional.cross_entropy(net(x), target)
        loss.backward()
        optimizer.step()
        loss.item()  # waits for the device

    return Program(step, compilation=stopwatch(step))


def torch_inference(shape: tuple[int, ...], threads: int, dtype: str) -> Program:
    """Logits of PyTorch's GoogLeNet."""
    import torch

    net, x, _ = _torch(torch_googlenet, shape, 1000, threads)

    def forward() -> None:
        with (
            torch.inference_mode(),
            torch.autocast(x.device.type, torch.bfloat16, enabled=dtype == "bfloat16"),
        ):
            net(x).sum().item()

    return Program(forward)


def _torch(network: Any, shape: tuple[int, ...], classes: int, threads: int) -> Any:
    import torch

    torch.set_num_threads(threads)
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    x, target = data(shape, classes, "float32")
    image = torch.from_numpy(np.array(x)).permute(0, 3, 1, 2).to(device)
    image = image.contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(np.array(target)).to(device, torch.int64)
    net = network().to(device, memory_format=torch.channels_last)
    return net, image, labels


def torch_cnn() -> Any:
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(3136, 10),
    )  # fmt: skip


def torch_googlenet() -> Any:
    import torch
    from torch import nn

    def conv(i: int, o: int, k: int, stride: int = 1) -> Any:
        return nn.Sequential(nn.Conv2d(i, o, k, stride, padding=k // 2), nn.ReLU(inplace=True))

    class Inception(nn.Module):
        def __init__(self, i: int, one: int, r3: int, three: int, r5: int, five: int, proj: int):
            super().__init__()
            self.branches = nn.ModuleList(
                [
                    conv(i, one, 1),
                    nn.Sequential(conv(i, r3, 1), conv(r3, three, 3)),
                    nn.Sequential(conv(i, r5, 1), conv(r5, five, 5)),
                    nn.Sequential(nn.MaxPool2d(3, 1, padding=1), conv(i, proj, 1)),
                ]
            )

        def forward(self, x: Any) -> Any:
            return torch.cat([branch(x) for branch in self.branches], 1)

    def pool() -> Any:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    layers = [conv(3, 64, 7, 2), pool(), nn.LocalResponseNorm(5), conv(64, 64, 1), conv(64, 192, 3),
              nn.LocalResponseNorm(5), pool()]  # fmt: skip
    channels = 192
    for name, sizes in INCEPTIONS.items():
        layers.append(Inception(channels, *sizes))
        channels = sizes[0] + sizes[2] + sizes[4] + sizes[5]
        layers += [pool()] if name in ("3b", "4e") else []
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)]
    return nn.Sequential(*layers)
