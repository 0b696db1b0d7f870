"""Lanczos: a few numbers that stand for a large symmetric matrix, from its products alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn.arguments import Count, checked
from fnn.block import BlockValueError, Params
from fnn.curvature.vectors import as_tangent, raveled
from fnn.refusals import described

Matvec = Callable[[Params], Params]  # v -> A v


class Ritz(NamedTuple):
    """Approximate eigenvalues and eigenvectors of A, in ascending order.

    ``values``: (m,). ``vectors``: (m, n), one a row. ``residuals``: (m,), ``|A v - value v|``: some
    eigenvalue of A is as close to the value as that.
    """

    values: jax.Array
    vectors: jax.Array
    residuals: jax.Array


class Lanczos(NamedTuple):
    """What :func:`lanczos` returns: the matrix A seen from a subspace, T = Q A Q^T.

    ``alphas``: (m,), the diagonal of T. ``betas``: (m,), the entries beside it, and as the last one
    the norm of what is outside of the subspace of A q_m. ``basis``: Q, (m, n), with orthonormal
    rows q, the first along v0.
    """

    alphas: jax.Array
    betas: jax.Array
    basis: jax.Array

    def eigh(self) -> tuple[jax.Array, jax.Array]:
        """Eigenvalues of T in ascending order, (m,), and its eigenvectors as columns, (m, m)."""
        beside = jnp.diag(self.betas[:-1], 1)
        return jnp.linalg.eigh(jnp.diag(self.alphas) + beside + beside.T)

    def ritz(self) -> Ritz:
        """The approximate eigenvalues and eigenvectors of A."""
        values, s = self.eigh()
        return Ritz(values, s.T @ self.basis, jnp.abs(self.betas[-1] * s[-1]))


@checked
def lanczos(matvec: Matvec, v0: Params, steps: Count) -> Lanczos:
    """An orthonormal basis of v0, A v0, A^2 v0, ..., in which A is tridiagonal.

    With q_0 along v0, and from then on (Lanczos 1950)

        w = A q_i - beta_{i-1} q_{i-1} - alpha_i q_i,    alpha_i = q_i . A q_i
        beta_i = |w|,    q_{i+1} = w / beta_i

    The extreme eigenvalues of A appear first. Rounding would lose the orthogonality of the q, and
    eigenvalues would appear several times, so w is made orthogonal to all of them, twice. Where
    nothing is left of w (the q span an invariant subspace), beta_i = 0 and a random vector
    orthogonal to all q goes on, so that T falls into independent blocks.

    Args:
      matvec: ``v -> A v`` for a symmetric A: ``functools.partial(product, params)`` of
        :func:`~fnn.curvature.hvp` or :func:`~fnn.curvature.ggn_vp`.
      v0: where to start: a pytree like the parameters, not zero.
      steps: m, at most the n numbers of v0. The basis takes m n numbers.

    Returns:
      :class:`Lanczos`, float64 where JAX has it (``jax_enable_x64``); v is given to ``matvec`` in
      the dtypes of v0.

    Raises:
      BlockValueError: more steps than v0 has numbers.

    >>> import jax.numpy as jnp
    >>> diagonal = jnp.array([1.0, 2.0, 3.0, 100.0])
    >>> lanczos(lambda v: diagonal * v, jnp.ones(4), 3).ritz().values.round(2)
    Array([  1.18,   2.81, 100.  ], dtype=float32)
    """
    start, unravel = raveled("lanczos", v0, "v0")
    n, wide = start.size, jnp.result_type(float)
    if steps > n:
        raise BlockValueError(
            "lanczos", f"steps is {steps}, needs at most {n}, the numbers of v0: {described(v0)}"
        )
    eps = jnp.finfo(wide).eps
    dot = partial(jnp.dot, precision="highest")  # on a GPU not in TF32

    def apply(q: jax.Array) -> jax.Array:
        v = unravel(q)
        product = as_tangent("lanczos", f"the result of {described(matvec)}", matvec(v), v, "v0")
        return raveled("lanczos", product)[0].astype(wide)

    def orthogonal(w: jax.Array, basis: jax.Array) -> jax.Array:
        for _ in range(2):
            w = w - dot(dot(basis, w), basis)
        return w

    def unit(w: jax.Array, basis: jax.Array, least: jax.Array, i: jax.Array) -> Any:
        """w / |w| and |w|, or where that is not above ``least`` a random direction and 0."""
        norm = jnp.linalg.norm(w)

        def fresh() -> jax.Array:
            key = jax.random.fold_in(jax.random.key(0), i)
            other = orthogonal(jax.random.normal(key, w.shape, wide), basis)
            return other / jnp.linalg.norm(other)

        ended = norm <= least
        q = jax.lax.cond(ended, fresh, lambda: w / jnp.where(ended, 1, norm))
        return q, jnp.where(ended, 0, norm)

    def step(carry: tuple, i: jax.Array) -> Any:
        basis, largest = carry  # rows after the i-th are still 0; largest: |A q| so far
        w = apply(basis[i])
        alpha = dot(basis[i], w)
        largest = jnp.maximum(largest, jnp.linalg.norm(w))
        q, beta = unit(orthogonal(w, basis), basis, 10 * n**0.5 * eps * largest, i)
        return (basis.at[i + 1].set(q, mode="drop"), largest), (alpha, beta)

    basis, zero = jnp.zeros((steps, n), wide), jnp.zeros((), wide)
    first, _ = unit(start.astype(wide), basis, zero, jnp.asarray(steps))
    carry = basis.at[0].set(first), zero
    (basis, _), (alphas, betas) = jax.lax.scan(step, carry, jnp.arange(steps))
    return Lanczos(alphas, betas, basis)
