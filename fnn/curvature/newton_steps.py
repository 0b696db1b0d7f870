"""Newton's method and saddle-free Newton, as optimisers in Optax's protocol."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn.arguments import Count, NonNegative, checked
from fnn.block import BlockTypeError, Params
from fnn.curvature.krylov import lanczos
from fnn.curvature.matrices import matrix
from fnn.curvature.products import Product
from fnn.curvature.vectors import filled, raveled
from fnn.optimizer import Optimizer
from fnn.refusals import described
from fnn.spelling import call_of


class NewtonState(NamedTuple):
    """The damping, which may be changed from step to step (``state._replace(damping=0.1)``), and
    the eigenvalues at the last step, ascending: all of them, or those of the Krylov subspace."""

    damping: jax.Array
    eigenvalues: jax.Array


@checked
def newton(product: Product, damping: NonNegative = 0.0, krylov: Count | None = None) -> Optimizer:
    """Newton's method: w <- w - (H + damping I)^-1 dE/dw.

    It goes to the nearest critical point, also to a saddle or a maximum. H is inverted by its
    eigenvalues; directions in which H + damping I is 0 up to rounding are left as they are (the
    pseudo-inverse). With ``krylov=k`` only the part of H in the space of g, H g, ..., H^(k-1) g is
    inverted, from k products and no matrix.

    Args:
      product: the curvature, ``(params, v) -> H v``: :func:`~fnn.curvature.hvp` of the gradient;
        with :func:`~fnn.curvature.ggn_vp` and a damping this is the Levenberg-Marquardt method.
      damping: at least 0, added to the eigenvalues.
      krylov: the dimension of the subspace; by default the whole space, by the exact matrix.

    Returns:
      An :class:`~fnn.Optimizer` whose state is a :class:`NewtonState`. ``grads`` may be None where
      params are held fixed. Other data at each step: make it inside the function of that step, from
      their product.

    Raises:
      BlockValueError: a matrix that would not fit in memory, a subspace larger than the space.

    Example: from anywhere, one step to the minimum of a quadratic function.

    >>> import fnn, jax, jax.numpy as jnp
    >>> gradient = jax.grad(lambda w: 3 * (w[0] - 1) ** 2 + w[0] * w[1] + w[1] ** 2)
    >>> optimizer = fnn.curvature.newton(fnn.curvature.hvp(gradient))
    >>> w = jnp.array([7.0, 9.0])
    >>> updates, state = optimizer.update(gradient(w), optimizer.init(w), w)
    >>> jnp.abs(gradient(w + updates)).max() < 1e-5
    Array(True, dtype=bool)
    """
    return _by_eigenvalues("newton", product, lambda e: e, damping, krylov)


@checked
def saddle_free_newton(
    product: Product, damping: NonNegative, krylov: Count | None = None
) -> Optimizer:
    """Saddle-free Newton: ``w <- w - (|H| + damping I)^-1 dE/dw``.

    ``|H|`` has the eigenvectors of H and the absolute values of its eigenvalues, so that a step
    goes downhill in every direction, and leaves a saddle as fast as Newton's method approaches it
    (Dauphin et al., "Identifying and attacking the saddle point problem in high-dimensional
    non-convex optimization", 2014). For large networks they take ``|H|`` in a Krylov subspace:
    ``krylov=k``.

    Args:
      product, krylov: as for :func:`newton`.
      damping: at least 0, added to the absolute eigenvalues, so that no step is longer than
        ``|g| / damping``.

    Returns:
      An :class:`~fnn.Optimizer`, as of :func:`newton`.

    Raises:
      BlockValueError: as :func:`newton`.

    Example: at E = x^2 - y^2 Newton's method goes to the saddle; this one goes away from it in y.

    >>> import fnn, jax, jax.numpy as jnp
    >>> gradient = jax.grad(lambda w: w[0] ** 2 - w[1] ** 2)
    >>> w = jnp.array([1.0, 0.5])
    >>> for make in (fnn.curvature.newton, fnn.curvature.saddle_free_newton):
    ...     optimizer = make(fnn.curvature.hvp(gradient), 0.0)
    ...     updates, state = optimizer.update(gradient(w), optimizer.init(w), w)
    ...     print(w + updates)
    [0. 0.]
    [0. 1.]
    """
    return _by_eigenvalues("saddle_free_newton", product, jnp.abs, damping, krylov)


def _by_eigenvalues(
    name: str,
    product: Product,
    of: Callable[[jax.Array], jax.Array],
    damping: float,
    krylov: int | None,
) -> Optimizer:
    """w <- w - sum_j v_j (v_j . g) / (of(e_j) + damping) over eigenvalues e_j, eigenvectors v_j."""

    def init(params: Params) -> NewtonState:
        size = raveled(name, params)[0].size if krylov is None else krylov
        wide = jnp.result_type(float)
        return NewtonState(jnp.asarray(damping, wide), jnp.zeros(size, wide))

    def update(
        grads: Params, state: NewtonState, params: Params = None, **extra: Any
    ) -> tuple[Params, NewtonState]:
        if params is None or not isinstance(state, NewtonState):
            raise BlockTypeError(
                name,
                f"state is {described(state)} and params is {described(params)}, needs what "
                "init(params) returned and the params: update(grads, state, params)",
            )
        grads = filled(name, "grads", grads, params)
        narrow, unravel = raveled(name, grads)
        g = narrow.astype(state.damping.dtype)
        if krylov is None:
            e, vectors = jnp.linalg.eigh(matrix(product, params).astype(g.dtype))
            along = vectors.T @ g
        else:
            seen = lanczos(partial(product, params), grads, krylov)
            e, s = seen.eigh()
            vectors, along = seen.basis.T @ s, jnp.linalg.norm(g) * s[0]  # g is |g| times row 0
        divisor = of(e) + state.damping
        # Of the rounding in the products.
        least = e.size * jnp.finfo(narrow.dtype).eps * jnp.max(jnp.abs(e))
        is_zero = jnp.abs(divisor) <= least
        step = vectors @ jnp.where(is_zero, 0, along / jnp.where(is_zero, 1, divisor))
        return unravel(-step), NewtonState(state.damping, e)

    return Optimizer(init, update, call=call_of(name, (product, damping, krylov)))
