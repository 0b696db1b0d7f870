"""The density of all eigenvalues of a large symmetric matrix, from its products alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fnn.arguments import Count, RandomKey, checked
from fnn.block import BlockValueError, Params
from fnn.curvature.krylov import Matvec, lanczos
from fnn.curvature.vectors import raveled


class Spectrum(NamedTuple):
    """What :func:`spectrum` returns: each probe's estimate of the density of eigenvalues, as
    weights at nodes.

    ``nodes``: (probes, steps), ascending; the first and the last approach the smallest and the
    largest eigenvalue. ``weights``: (probes, steps), of sum 1 for each probe.
    """

    nodes: jax.Array
    weights: jax.Array

    def mean(self, f: Callable[[jax.Array], jax.Array]) -> tuple[jax.Array, jax.Array]:
        """The mean of f over all eigenvalues, trace f(A) / n, and its standard error.

        Args:
          f: a function of eigenvalues, entry by entry: ``lambda e: e`` for the trace / n,
            ``lambda e: e < 0`` for the share of negative ones.

        Returns:
          The mean over probes, and their standard deviation / sqrt(probes): NaN for one probe.
        """
        each = jnp.sum(self.weights * jnp.asarray(f(self.nodes), self.nodes.dtype), 1)
        return each.mean(), each.std(ddof=1) / each.size**0.5

    def density(self, grid: jax.Array, width: float) -> tuple[jax.Array, jax.Array]:
        """The density at the points of a grid, each eigenvalue smoothed to a normal distribution.

        Args:
          grid: (k,).
          width: the standard deviation of the smoothing.

        Returns:
          The density, (k,), of integral 1, and its standard error, (k,).

        Raises:
          BlockValueError: a width that is not above 0.
        """
        if isinstance(width, (int, float)) and not width > 0:
            raise BlockValueError("density", f"width is {width}, needs a number above 0")

        def at(point: jax.Array) -> tuple[jax.Array, jax.Array]:
            return self.mean(lambda nodes: jax.scipy.stats.norm.pdf(point, nodes, width))

        return jax.lax.map(at, jnp.asarray(grid, self.nodes.dtype), batch_size=32)


@checked
def spectrum(
    matvec: Matvec, like: Params, key: RandomKey, probes: Count = 10, steps: Count = 80
) -> Spectrum:
    """Stochastic Lanczos quadrature: the density of the eigenvalues of A.

    A random v of independent entries +-1 / sqrt(n) has E[v . f(A) v] = trace f(A) / n
    (Hutchinson 1990). For each, :func:`lanczos` makes a small T, whose eigenvalues are the nodes
    and whose eigenvectors' squared first components the weights of Gauss's quadrature:

        v . f(A) v = sum_j weights_j f(nodes_j),

    exact for polynomials of degree 2 steps - 1 (Golub and Welsch 1969; Ubaru, Chen and Saad 2017;
    for networks: Ghorbani, Krishnan and Xiao 2019).

    Args:
      matvec: ``v -> A v`` for a symmetric A, as for :func:`lanczos`.
      like: a pytree of the structure, shapes and dtypes of v: the parameters.
      key: a ``jax.random`` key, for the probes.
      probes: how many v; the standard error falls with their root.
      steps: of Lanczos for each; no more than the n numbers of v are made.

    Returns:
      :class:`Spectrum`. Numbers that are held fixed (frozen parameters) count as eigenvalues of 0.

    >>> import jax, jax.numpy as jnp
    >>> diagonal = jnp.array([-1.0, 0.0, 0.0, 5.0])
    >>> found = spectrum(lambda v: diagonal * v, jnp.zeros(4), jax.random.key(0), steps=3)
    >>> [round(float(value), 4) for value in found.mean(lambda e: e)]  # trace / n, and its error
    [1.0, 0.0]
    """
    vector, unravel = raveled("spectrum", like, "like")
    n = vector.size

    def probe(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        v0 = unravel(jax.random.rademacher(key, (n,), vector.dtype))
        nodes, vectors = lanczos(matvec, v0, min(steps, n)).eigh()
        return nodes, jnp.square(vectors[0])

    return Spectrum(*jax.lax.map(probe, jax.random.split(key, probes)))
