"""GPT-2 in PyTorch, of the parameters of :func:`fnn.models.transformer`."""

from __future__ import annotations

from typing import Any


def logits(functional: Any, params: Any, ids: Any, heads: int) -> Any:
    """What ``fnn.models.transformer(..., style="gpt2")`` computes, of tensors.

    Args:
      functional: ``torch.nn.functional``.
    """
    F = functional

    def affine(p: Any, x: Any) -> Any:
        return F.linear(x, p["w"].T, p.get("b"))

    def norm(p: Any, x: Any) -> Any:
        return F.layer_norm(x, x.shape[-1:], p["scale"], p.get("bias"), 1e-5)

    x = F.embedding(ids, params["embedding"]["w"]) + params["positions"]["w"][: ids.shape[1]]
    for i in range(1, sum(name.startswith("layer_") for name in params) + 1):
        layer = params[f"layer_{i}"]
        reads, h = layer["attention"], norm(layer["norm_1"], x)
        q, k, v = (
            affine(reads[name], h).unflatten(-1, (heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        x = x + affine(reads["out"], y.reshape(x.shape))
        h = affine(layer["mlp"]["hidden"], norm(layer["norm_2"], x))
        x = x + affine(layer["mlp"]["out"], F.gelu(h, approximate="tanh"))
    return norm(params["norm"], x) @ params["embedding"]["w"].T
