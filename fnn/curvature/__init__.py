"""Curvature: second derivatives of a loss, as products, matrices, spectra and Newton steps.

Everything is made of two kinds of functions. A *gradient* is ``params -> grads``:
:func:`gradient_of` a network and its loss, or any other, such as ``jax.grad(f)``. A *product* is
``(params, v) -> A v`` with a symmetric matrix A of the size of the parameters, which is never
formed: the Hessian (:func:`hvp`) or the generalised Gauss-Newton matrix (:func:`ggn_vp`). Bound to
some parameters, ``functools.partial(product, params)``, it is a *matvec*, ``v -> A v``.

v, like the result, is a pytree of the structure and shapes of the parameters. What has no gradient
(frozen parameters, running statistics) is held fixed: A is zero in its rows and columns.

>>> import functools, fnn, jax, jax.numpy as jnp
>>> net, loss = fnn.models.mlp((8, 3), fnn.tanh()), fnn.softmax_cross_entropy()
>>> x, target = jax.random.normal(jax.random.key(0), (20, 4)), jnp.arange(20) % 3
>>> params = net.init(jax.random.key(1), x)
>>> gradient = fnn.curvature.gradient_of(net, loss, x, target)
>>> H = jax.jit(functools.partial(fnn.curvature.hessian, gradient))(params)
>>> H.shape
(67, 67)
>>> matvec = functools.partial(fnn.curvature.hvp(gradient), params)
>>> few = fnn.curvature.lanczos(matvec, params, steps=20).ritz().values
>>> bool(abs(few[-1] - jnp.linalg.eigvalsh(H)[-1]) < 1e-5)  # the largest eigenvalue
True
"""

from fnn.curvature.krylov import Lanczos, Ritz, lanczos
from fnn.curvature.matrices import ggn, hessian, matrix
from fnn.curvature.newton_steps import NewtonState, newton, saddle_free_newton
from fnn.curvature.products import ggn_vp, gradient_of, hvp
from fnn.curvature.quadrature import Spectrum, spectrum

__all__ = [
    "Lanczos",
    "NewtonState",
    "Ritz",
    "Spectrum",
    "ggn",
    "ggn_vp",
    "gradient_of",
    "hessian",
    "hvp",
    "lanczos",
    "matrix",
    "newton",
    "saddle_free_newton",
    "spectrum",
]
