"""Curvature: second derivatives of a loss, as products, matrices, spectra and Newton steps.

Everything is made of two kinds of functions. A *gradient* is ``params -> grads``:
:func:`gradient_of` a network and its loss, or any other, such as ``jax.grad(f)``. A *product* is
``(params, v) -> A v`` with a symmetric matrix A of the size of the parameters, which is never
formed: the Hessian (:func:`hvp`) or the generalised Gauss-Newton matrix (:func:`ggn_vp`). Bound to
some parameters, ``functools.partial(product, params)``, it is a *matvec*, ``v -> A v``.

v, like the result, is a pytree of the structure and shapes of the parameters. What has no gradient
(frozen parameters, running statistics) is held fixed: A is zero in its rows and columns.
"""

from fnn.curvature.matrices import ggn, hessian, matrix
from fnn.curvature.products import ggn_vp, gradient_of, hvp

__all__ = ["ggn", "ggn_vp", "gradient_of", "hessian", "hvp", "matrix"]
