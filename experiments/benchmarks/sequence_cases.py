"""What :mod:`experiments.benchmarks.sequences` times: the same work for each library."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import fnn
from experiments.benchmarks import torch_gpt
from fnn.block import Block

JAX, FLAX = "JAX, jax.grad", "Flax NNX"

Program = Callable[..., Any]
Compile = Callable[[Any], Any]  # torch.compile, or the identity


class Task(NamedTuple):
    """``programs``: by contender, what makes a function of the arguments, which raises
    ModuleNotFoundError where its library is not installed; ``torch``: makes one of tensors."""

    name: str
    arguments: Callable[[np.random.Generator], Any]
    programs: dict[str, Callable[[], Program]]
    torch: Callable[[Any, Any, Compile], Callable[[], Any]]


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

    def of_jax(q: Any, k: Any, v: Any) -> Any:
        return jax.nn.dot_product_attention(q, k, v, is_causal=True)

    def formula(q: Any, k: Any, v: Any) -> Any:
        s = jnp.einsum("bthd,bshd->bhts", q, k) / math.sqrt(q.shape[-1])
        s = jnp.where(jnp.tril(jnp.ones(s.shape[-2:], bool)), s, -jnp.inf)
        return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(s), v)

    def in_flax() -> Program:
        from flax import nnx

        mask = nnx.make_causal_mask(jnp.ones((batch, length)))
        return vjp(lambda q, k, v: nnx.dot_product_attention(q, k, v, mask=mask))

    def vjp(attend: Callable[..., Any]) -> Program:
        def run(q: Any, k: Any, v: Any, dy: Any) -> Any:
            y, pullback = jax.vjp(attend, q, k, v)
            return y, pullback(dy)

        return run

    def in_torch(torch: Any, tensors: Any, compile: Compile) -> Callable[[], Any]:
        *inputs, dy = tensors

        def attend(q: Any, k: Any, v: Any) -> Any:
            q, k, v = (a.transpose(1, 2) for a in (q, k, v))
            y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            return y.transpose(1, 2)

        forward = compile(attend)
        return lambda: torch.autograd.grad(forward(*inputs), inputs, dy)

    name = f"causal attention, batch {batch}, T {length}, 8 heads of 64"
    programs = {
        "fnn": lambda: by_hand, JAX: lambda: vjp(of_jax),
        "JAX, plain formula": lambda: vjp(formula), FLAX: in_flax,
    }  # fmt: skip
    return Task(name, arguments, programs, in_torch)


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

    def in_torch(torch: Any, tensors: Any, compile: Compile) -> Callable[[], Any]:
        h, w, labels = tensors

        def loss(h: Any, w: Any) -> Any:
            return torch.nn.functional.cross_entropy(h @ w.T, labels)

        forward = compile(loss)
        return lambda: torch.autograd.grad(forward(h, w), (h, w))

    name = f"head and loss, {tokens} tokens, vocabulary {vocabulary}"
    return Task(name, arguments, {"fnn": lambda: by_hand, JAX: lambda: plain}, in_torch)


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

    def in_flax() -> Program:
        from flax import nnx

        cell = nnx.OptimizedLSTMCell(width, width, rngs=nnx.Rngs(0))
        graph, own = nnx.split(nnx.RNN(cell, rngs=nnx.Rngs(0)))

        def run(_: Any, x: Any, dy: Any) -> Any:
            y, pullback = jax.vjp(lambda params, x: nnx.merge(graph, params)(x), own, x)
            return y, pullback(dy)

        return run

    def in_torch(torch: Any, tensors: Any, compile: Compile) -> Callable[[], Any]:
        _, x, dy = tensors
        net = torch.nn.LSTM(width, width, batch_first=True)
        forward = compile(net)
        return lambda: torch.autograd.grad(forward(x)[0], (*net.parameters(), x), dy)

    name = f"LSTM, batch {batch}, {length} steps, {width} wide"
    programs = {"fnn": lambda: by_hand, JAX: lambda: plain, FLAX: in_flax}
    return Task(name, arguments, programs, in_torch)


# ---- language models -------------------------------------------------------------------------


def language(
    name: str, vocabulary: int, width: int, layers: int, heads: int, batch: int, length: int,
    keep: Literal["all", "products"] = "products",
) -> Task:  # fmt: skip
    net = fnn.models.transformer(
        vocabulary, width, layers, heads, length=length, factored=True, keep=keep
    )
    step = fnn.value_and_grad(net, fnn.linear_softmax_cross_entropy())
    parts = ("query", "key", "value")

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

    def in_flax() -> Program:
        from flax import nnx

        from experiments.benchmarks.flax_gpt import Transformer

        net = Transformer(vocabulary, width, layers, heads, length, nnx.Rngs(0))
        graph, own = nnx.split(net)

        def run(_: Any, ids: Any, labels: Any) -> Any:
            def loss(params: Any) -> Any:
                return _entropy(nnx.merge(graph, params)(ids), labels)

            return jax.value_and_grad(loss)(own)

        return run

    def in_torch(torch: Any, tensors: Any, compile: Compile) -> Callable[[], Any]:
        params, ids, labels = tensors
        F = torch.nn.functional

        def loss(params: Any) -> Any:
            z = torch_gpt.logits(F, params, ids, heads)
            return F.cross_entropy(z.flatten(0, 1), labels.flatten())

        forward, leaves = compile(loss), [p for p in jax.tree.leaves(params) if p.requires_grad]
        return lambda: torch.autograd.grad(forward(params), leaves)

    programs = {"fnn": lambda: step, JAX: lambda: plain, FLAX: in_flax}
    return Task(name, arguments, programs, in_torch)


def _drawn(block: Block, x: Any, rng: np.random.Generator) -> Any:
    like = jax.eval_shape(block.init, jax.random.key(0), x)
    return jax.tree.map(lambda p: 0.02 * rng.standard_normal(p.shape, np.float32), like)
