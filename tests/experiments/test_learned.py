"""What of a picture a unit sees, by the backward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from experiments.googlenet.learned import _crop, seen

pytestmark = pytest.mark.as_users


@pytest.mark.slow
def test_a_unit_sees_what_its_filters_reach() -> None:
    """Two 3x3 convolutions reach 5x5 pixels."""
    net = fnn.serial(fnn.conv(2, 3), fnn.conv(3, 3))
    x = jax.random.normal(jax.random.key(0), (11, 11, 2))
    params = net.init(jax.random.key(1), x[None])
    pixels = np.asarray(seen(net, params, x, 5, 4, 1))
    expected = np.zeros((11, 11), bool)
    expected[3:8, 2:7] = True
    np.testing.assert_array_equal(pixels, expected)


def test_a_crop_is_a_square_inside_the_picture() -> None:
    picture = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
    pixels = np.zeros((20, 30), bool)
    pixels[17:20, 22:30] = True  # at the corner: the square moves up
    crop = _crop(picture, pixels)
    assert crop.shape[0] == crop.shape[1] and crop.dtype == np.uint8
    assert jnp.ptp(crop) > 0
