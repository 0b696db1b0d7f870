"""Attention, recurrence and language models: fnn's rules beside autodiff and PyTorch.

    python -m experiments.benchmarks sequences
    python -m experiments.benchmarks sequences --only attention --repeats 3
    python -m experiments.benchmarks sequences --only GPT-2

Each is forward and backward, with the parameters and inputs of all contenders the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import fnn
from experiments.benchmarks import report, timing
from experiments.benchmarks.report import Recorded, Table
from experiments.benchmarks.timing import compiled, ratio, ready
from fnn.block import Block

PACKAGES = ("jax", "torch", "numpy")
COLUMNS = ("what", "contender", "ms (quartiles)", "ratio to fnn", "compilation, s", "temporary, MB")
ABOUT = """\
- Forward and backward, from a random cotangent or a loss to the gradients of all parameters and
  floating inputs; float32. jax.grad is of the plain formula, with attention by
  `jax.nn.dot_product_attention`; PyTorch is eager, with `scaled_dot_product_attention`, `nn.LSTM`
  and `F.cross_entropy`. fnn's transformers keep what products give, of each layer 11 numbers for
  each token and feature, and compute the rest again.
- The median of the rounds; in each, all contenders run once, in random order, after a pause.
  Ratios are medians of those within a round. Temporary: as XLA reports for the compiled program."""


@dataclass(kw_only=True)
class Options(Recorded):
    """Measures attention, recurrence and language models beside jax.grad and PyTorch."""

    repeats: int = 7
    """rounds; in each, every contender is timed once"""
    only: str = ""
    """only rows whose name contains this"""


class Task(NamedTuple):
    """``fnn`` and ``plain``: functions of the same arrays; ``torch``: makes one of tensors."""

    name: str
    arguments: Callable[[np.random.Generator], Any]
    fnn: Callable[..., Any]
    plain: Callable[..., Any]
    torch: Callable[[Any, Any], Callable[[], Any]]


def main(options: Options) -> None:
    """Measures, prints the table, and records it. Ctrl-C prints the table so far."""
    threads = report.limit_threads(options.threads)
    warnings = [f"WARNING: {warning}" for warning in report.other_work()]
    head = [report.conditions(threads, PACKAGES), *warnings]
    print("\n".join(head))
    table, interrupted = Table(COLUMNS, []), False
    try:
        for task in tasks():
            if options.only in task.name:
                table.rows.extend(rows_of(task, threads, options.repeats))
    except KeyboardInterrupt:
        interrupted = True
    table.show()
    name = f"sequences, {jax.default_backend().upper()}"
    report.record(None if interrupted else options.out, name, *head, table.markdown(), ABOUT)


def rows_of(task: Task, threads: int, repeats: int) -> list[list[str]]:
    """A row for each contender."""
    arguments = task.arguments(np.random.default_rng(0))
    programs = {
        name: compiled(f, *arguments) for name, f in (("fnn", task.fnn), ("jax.grad", task.plain))
    }
    runs = {name: ready(program.program, *arguments) for name, program in programs.items()}
    try:
        import torch
    except ModuleNotFoundError as error:
        print(f"left out: PyTorch ({error})")
    else:
        torch.set_num_threads(threads)
        runs["PyTorch"] = task.torch(torch, jax.tree.map(lambda a: _tensor(torch, a), arguments))
    seconds = timing.alternating(runs, repeats, timing.PAUSE_SECONDS)
    rows = []
    for name in runs:
        low, middle, high = (1e3 * t for t in timing.quartiles(seconds[name]))
        program = programs.get(name)
        rows.append([
            task.name, name, f"{middle:.1f} ({low:.1f}-{high:.1f})",
            f"{ratio(seconds[name], seconds['fnn']):.2f}",
            "-" if program is None else f"{program.seconds:.1f}",
            "-" if program is None else f"{program.temporary / 1e6:.0f}",
        ])  # fmt: skip
    return rows


def _tensor(torch: Any, array: Any) -> Any:
    tensor = torch.from_numpy(np.array(array))
    return tensor.requires_grad_() if tensor.is_floating_point() else tensor.long()


def _floats(tree: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(tree) if leaf.requires_grad]


def tasks() -> list[Task]:
    """The rows, the smallest first."""
    return [
        language("language model step, nanoGPT's CPU setting", 65, 128, 4, 4, 12, 64),
        lstm(32, 256, 128),
        attention(4, 1024),
        head_and_loss(2048, 32768, 256),
        attention(1, 4096),
        language("GPT-2 124M step", 50257, 768, 12, 12, 4, 64),
    ]


# ---- attention -------------------------------------------------------------------------------


def attention(batch: int, length: int) -> Task:
    block, shape = fnn.dot_product_attention(causal=True), (batch, length, 8, 64)

    def arguments(rng: np.random.Generator) -> Any:
        return tuple(rng.standard_normal(shape).astype(np.float32) for _ in range(4))

    def by_hand(q: Any, k: Any, v: Any, dy: Any) -> Any:
        y, residuals = block.forward({}, (q, k, v))
        return y, block.backward({}, residuals, dy)[1]

    def plain(q: Any, k: Any, v: Any, dy: Any) -> Any:
        def attend(q: Any, k: Any, v: Any) -> Any:
            return jax.nn.dot_product_attention(q, k, v, is_causal=True)

        y, pullback = jax.vjp(attend, q, k, v)
        return y, pullback(dy)

    def in_torch(torch: Any, tensors: Any) -> Callable[[], Any]:
        *inputs, dy = tensors
        attend = torch.nn.functional.scaled_dot_product_attention

        def run() -> Any:
            y = attend(*(a.transpose(1, 2) for a in inputs), is_causal=True).transpose(1, 2)
            return torch.autograd.grad(y, inputs, dy)

        return run

    name = f"causal attention, batch {batch}, T {length}, 8 heads of 64"
    return Task(name, arguments, by_hand, plain, in_torch)


# ---- the head and the loss -------------------------------------------------------------------


def head_and_loss(tokens: int, vocabulary: int, features: int) -> Task:
    block = fnn.linear_softmax_cross_entropy()

    def arguments(rng: np.random.Generator) -> Any:
        h, w = rng.standard_normal((tokens, features)), rng.standard_normal((vocabulary, features))
        labels = rng.integers(0, vocabulary, tokens)
        return h.astype(np.float32), 0.02 * w.astype(np.float32), labels.astype(np.int32)

    def by_hand(h: Any, w: Any, labels: Any) -> Any:
        value, residuals = block.forward({}, ((h, w), labels))
        return value, block.backward({}, residuals, jnp.ones_like(value))[1][0]

    def plain(h: Any, w: Any, labels: Any) -> Any:
        return jax.value_and_grad(lambda h, w: _entropy(h @ w.T, labels), (0, 1))(h, w)

    def in_torch(torch: Any, tensors: Any) -> Callable[[], Any]:
        h, w, labels = tensors

        def run() -> Any:
            return torch.autograd.grad(torch.nn.functional.cross_entropy(h @ w.T, labels), (h, w))

        return run

    name = f"head and loss, {tokens} tokens, vocabulary {vocabulary}"
    return Task(name, arguments, by_hand, plain, in_torch)


def _entropy(logits: Any, labels: Any) -> Any:
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)
    return -jnp.mean(chosen)


# ---- recurrence ------------------------------------------------------------------------------


def lstm(batch: int, length: int, width: int) -> Task:
    block = fnn.recurrent(fnn.lstm_cell(width))

    def arguments(rng: np.random.Generator) -> Any:
        x, dy = (rng.standard_normal((batch, length, width)).astype(np.float32) for _ in range(2))
        return _drawn(block, x, rng), x, dy

    def by_hand(params: Any, x: Any, dy: Any) -> Any:
        y, residuals = block.forward(params, x)
        return y, block.backward(params, residuals, dy)

    def plain(params: Any, x: Any, dy: Any) -> Any:
        def run(params: Any, x: Any) -> Any:
            def step(state: Any, x: Any) -> Any:
                h, c = state
                a = x @ params["input"]["w"] + params["input"]["b"] + h @ params["hidden"]["w"]
                i, f, g, o = jnp.split(a, 4, -1)
                c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
                h = jax.nn.sigmoid(o) * jnp.tanh(c)
                return (h, c), h

            zeros = jnp.zeros((batch, width), x.dtype)
            ys = lax.scan(step, (zeros, zeros), jnp.moveaxis(x, 1, 0))[1]
            return jnp.moveaxis(ys, 0, 1)

        y, pullback = jax.vjp(run, params, x)
        return y, pullback(dy)

    def in_torch(torch: Any, tensors: Any) -> Callable[[], Any]:
        _, x, dy = tensors
        net = torch.nn.LSTM(width, width, batch_first=True)

        def run() -> Any:
            return torch.autograd.grad(net(x)[0], (*net.parameters(), x), dy)

        return run

    name = f"LSTM, batch {batch}, {length} steps, {width} wide"
    return Task(name, arguments, by_hand, plain, in_torch)


# ---- language models -------------------------------------------------------------------------


def language(
    name: str, vocabulary: int, width: int, layers: int, heads: int, batch: int, length: int
) -> Task:
    net = fnn.models.transformer(
        vocabulary, width, layers, heads, length=length, factored=True, keep="products"
    )
    step = fnn.value_and_grad(net, fnn.linear_softmax_cross_entropy())
    norms, parts = ("scale", "bias"), ("query", "key", "value")

    def arguments(rng: np.random.Generator) -> Any:
        ids = rng.integers(0, vocabulary, (batch, length + 1)).astype(np.int32)
        return _drawn(net, ids[:, :-1], rng), ids[:, :-1], ids[:, 1:]

    def plain(params: Any, ids: Any, labels: Any) -> Any:
        def affine(p: Any, x: Any) -> Any:
            y = x @ p["w"]
            return y + p["b"] if "b" in p else y

        def norm(p: Any, x: Any) -> Any:
            x = x - jnp.mean(x, -1, keepdims=True)
            x = x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5)
            return x * p["scale"] + p["bias"]

        def loss(params: Any) -> Any:
            x = params["embedding"]["w"][ids] + params["positions"]["w"]
            for i in range(1, layers + 1):
                p = params[f"layer_{i}"]
                reads, h = p["attention"], norm(p["norm_1"], x)
                q, k, v = (affine(reads[n], h).reshape(batch, length, heads, -1) for n in parts)
                y = jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape)
                x = x + affine(reads["out"], y)
                h = affine(p["mlp"]["hidden"], norm(p["norm_2"], x))
                x = x + affine(p["mlp"]["out"], jax.nn.gelu(h, approximate=True))
            return _entropy(norm(params["norm"], x) @ params["embedding"]["w"].T, labels)

        return jax.value_and_grad(loss)(params)

    def in_torch(torch: Any, tensors: Any) -> Callable[[], Any]:
        params, ids, labels = tensors
        F = torch.nn.functional

        def affine(p: Any, x: Any) -> Any:
            return F.linear(x, p["w"].T, p.get("b"))

        def norm(p: Any, x: Any) -> Any:
            return F.layer_norm(x, (width,), *(p[n] for n in norms), eps=1e-5)

        def run() -> Any:
            x = F.embedding(ids, params["embedding"]["w"]) + params["positions"]["w"]
            for i in range(1, layers + 1):
                p = params[f"layer_{i}"]
                reads, h = p["attention"], norm(p["norm_1"], x)
                q, k, v = (
                    affine(reads[n], h).view(batch, length, heads, -1).transpose(1, 2)
                    for n in parts
                )
                y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
                x = x + affine(reads["out"], y.reshape(x.shape))
                h = affine(p["mlp"]["hidden"], norm(p["norm_2"], x))
                x = x + affine(p["mlp"]["out"], F.gelu(h, approximate="tanh"))
            z = norm(params["norm"], x) @ params["embedding"]["w"].T
            value = F.cross_entropy(z.flatten(0, 1), labels.flatten())
            return value, torch.autograd.grad(value, _floats(params))

        return run

    return Task(name, arguments, step, plain, in_torch)


def _drawn(block: Block, x: Any, rng: np.random.Generator) -> Any:
    like = jax.eval_shape(block.init, jax.random.key(0), x)
    return jax.tree.map(lambda p: 0.02 * rng.standard_normal(p.shape, np.float32), like)
