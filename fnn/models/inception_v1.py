"""GoogLeNet: the network of inception modules that won ILSVRC 2014.

Szegedy et al., "Going deeper with convolutions", CVPR 2015. Two forms of it:

- ``googlenet``: as published, with the names, the pooling and the local response normalisation
  of BVLC's Caffe model, so that its trained weights fit by name.
- ``googlenet_batch_norm``: as in torchvision, with batch normalisation after every convolution
  and a 3x3 kernel where the paper has 5x5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fnn.arguments import Count, NonNegative, Positive, Share, checked
from fnn.block import Block, BlockValueError, Kind, Value
from fnn.blocks.combinators import concatenate, flatten, item, serial
from fnn.blocks.conv import conv
from fnn.blocks.dropout import dropout
from fnn.blocks.gates import add, scale
from fnn.blocks.linear import linear
from fnn.blocks.nonlinearities import relu
from fnn.blocks.normalization import batch_norm, local_response_norm
from fnn.blocks.pooling import avg_pool, global_avg_pool, max_pool
from fnn.executor import Entry, graph

# Table 1 of the paper: #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj.
INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


@checked
def inception(
    one: Count, three_reduce: Count, three: Count, five_reduce: Count, five: Count, pool: Count
) -> Block:
    """The inception module: four branches over the same input, joined along the channels.

    1x1; 1x1 then 3x3; 1x1 then 5x5; 3x3 max-pool then 1x1. Every convolution is followed by ReLU.

    Args:
      one, three_reduce, three, five_reduce, five, pool: the channels of the six convolutions, in
        the order of the paper's Table 1.

    Returns:
      A graph from (B, H, W, C) to (B, H, W, one + three + five + pool).

    Raises:
      BlockValueError: channels that are not whole numbers of at least 1.

    >>> import fnn, jax
    >>> net = fnn.models.inception(64, 96, 128, 16, 32, 32)
    >>> x = jax.ShapeDtypeStruct((1, 28, 28, 192), "float32")
    >>> params = jax.eval_shape(net.init, jax.random.key(0), x)
    >>> jax.eval_shape(net.forward, params, x)[0].shape
    (1, 28, 28, 256)
    """
    branches = {
        "1x1": ("x", conv(one, 1)),
        "3x3_reduce": ("x", conv(three_reduce, 1)),
        "3x3": ("3x3_reduce", conv(three, 3)),
        "5x5_reduce": ("x", conv(five_reduce, 1)),
        "5x5": ("5x5_reduce", conv(five, 5)),
        "pool_proj": ("pool", conv(pool, 1)),
    }
    nodes: list[Entry] = [("pool", max_pool(3, 1, padding="SAME"), "x")]
    for name, (source, block) in branches.items():
        source = source if source in ("x", "pool") else f"relu_{source}"
        nodes += [(name, block, source), (f"relu_{name}", relu(), name)]
    ends = tuple(f"relu_{name}" for name in ("1x1", "3x3", "5x5", "pool_proj"))
    nodes.append(("output", concatenate(), ends))
    return graph("x", nodes, "output", name="inception")


@checked
def googlenet(
    classes: Count = 1000,
    *,
    auxiliary: bool = True,
    width: Positive = 1.0,
    dropout_rate: Share = 0.4,
    stem_strides: tuple[Count, Count, Count] = (2, 2, 2),
) -> Block:
    """The published network: 22 layers with 6,998,552 parameters for 1000 classes.

    Parameters are named as in BVLC's model: ``inception_3a/5x5_reduce/w``. Train it with
    :func:`deep_supervision` of the loss; ``inference(net)`` has no auxiliary heads and takes the
    same parameters, or parameters without theirs.

    Args:
      classes: the number of outputs.
      auxiliary: whether there are two more classifiers, which read 4a and 4d (13,378,280
        parameters in all). They average windows of 5 x 5 values, 3 apart: 4 x 4 windows for images
        of 224 x 224, and one for a side of 79, the smallest (27 with ``stem_strides=(2, 1, 1)``).
        The parameters of their ``fc`` are the only ones that depend on the size of x.
      width: a factor of all inner channels, which are rounded: below 1 for a narrower network.
      dropout_rate: before the main classifier; it is 0.7 in the auxiliary heads.
      stem_strides: of conv1, pool1 and pool2, which together reduce a side to an eighth before the
        first inception module. Small images need less: with ``(2, 1, 1)``, 28 x 28 become 10 x 10.

    Returns:
      A graph from images (B, H, W, 3) to logits (B, classes); with ``auxiliary`` to a tuple of
      three, the main classifier's first.

    Raises:
      BlockValueError: an argument out of its range; images that are too small.

    >>> import fnn, jax
    >>> net = fnn.models.googlenet(auxiliary=False)
    >>> x = jax.ShapeDtypeStruct((1, 224, 224, 3), "float32")
    >>> params = jax.eval_shape(net.init, jax.random.key(0), x)
    >>> sum(p.size for p in jax.tree.leaves(params))
    6998552
    """

    if 1024 * width >= 2**31:  # the widest layer
        raise BlockValueError("googlenet", f"width is {width}, needs a factor below {2**21}")

    def scaled(*channels: int) -> list[int]:
        return [max(1, round(c * width)) for c in channels]

    (stem, reduced, before), (head, hidden) = scaled(64, 64, 192), scaled(128, 1024)

    def pool(stride: int) -> Block:
        return max_pool(3, stride, ceil_mode="caffe")  # sizes round up, as Caffe's do

    blocks: dict[str, Block] = {
        "conv1": serial(
            **{"7x7_s2": conv(stem, 7, stride=stem_strides[0], padding=3), "relu": relu()}
        ),
        "pool1": serial(**{"3x3_s2": pool(stem_strides[1]), "norm1": local_response_norm()}),
        "conv2": serial(
            **{
                "3x3_reduce": conv(reduced, 1),
                "relu_3x3_reduce": relu(),
                "3x3": conv(before, 3),
                "relu_3x3": relu(),
                "norm2": local_response_norm(),
            }
        ),
        "pool2": pool(stem_strides[2]),
    }
    for name, channels in INCEPTIONS.items():
        blocks[f"inception_{name}"] = inception(*scaled(*channels))
        if name in ("3b", "4e"):
            blocks[f"pool{name[0]}"] = pool(2)
    blocks |= {
        "pool5": global_avg_pool(),
        "dropout": dropout(dropout_rate),
        "loss3": serial(classifier=linear(classes)),
    }
    names = list(blocks)
    nodes = [(name, blocks[name], read) for name, read in zip(names, ["x", *names], strict=False)]
    if not auxiliary:
        return graph("x", nodes, "loss3", name="googlenet")
    for name, source in (("loss1", "inception_4a"), ("loss2", "inception_4d")):
        auxiliary_head = serial(
            ave_pool=avg_pool(5, 3, ceil_mode="caffe"),
            conv=conv(head, 1),
            relu_conv=relu(),
            flatten=flatten(),
            fc=linear(hidden),
            relu_fc=relu(),
            dropout=dropout(0.7),
            classifier=linear(classes),
        )
        nodes.append((name, auxiliary_head, source))
    outputs = ("loss3", "loss1", "loss2")
    net = graph("x", nodes, outputs, at_inference="loss3", name="googlenet")
    return net._replace(
        kind=Kind("googlenet", (classes, auxiliary, width, dropout_rate, stem_strides))
    )


@checked
def googlenet_batch_norm(
    classes: Count = 1000, *, dropout_rate: Share = 0.2, epsilon: NonNegative = 1e-3
) -> Block:
    """GoogLeNet as in torchvision: batch normalisation, no biases, 3x3 in place of 5x5.

    6,624,904 parameters for 1000 classes, not counting the running statistics. They are named as in
    torchvision: ``inception3a/branch2/0/conv/w``.

    Args:
      classes: the number of outputs.
      dropout_rate: before the classifier.
      epsilon: of the batch normalisations.

    Returns:
      A graph from images (B, H, W, 3) to logits (B, classes).

    Raises:
      BlockValueError: an argument out of its range; images that are too small.

    >>> import fnn, jax
    >>> net = fnn.models.googlenet_batch_norm()
    >>> x = jax.ShapeDtypeStruct((1, 224, 224, 3), "float32")
    >>> params = jax.eval_shape(net.init, jax.random.key(0), x)
    >>> jax.eval_shape(net.forward, params, x, jax.random.key(0))[0].shape
    (1, 1000)
    """

    def basic(features: int, kernel: int, **options: Any) -> Block:
        convolution = conv(features, kernel, use_bias=False, **options)
        return serial(conv=convolution, bn=batch_norm(epsilon=epsilon), relu=relu())

    def module(one: int, r3: int, three: int, r5: int, five: int, proj: int) -> Block:
        branches = {
            "branch1": basic(one, 1),
            "branch2": serial(**{"0": basic(r3, 1), "1": basic(three, 3)}),
            "branch3": serial(**{"0": basic(r5, 1), "1": basic(five, 3)}),
            "branch4": serial(
                **{"0": max_pool(3, 1, padding=1, ceil_mode="torch"), "1": basic(proj, 1)}
            ),
        }
        nodes: list[Entry] = [(name, block, "x") for name, block in branches.items()]
        nodes.append(("output", concatenate(), tuple(branches)))
        return graph("x", nodes, "output", name="inception")

    pool = max_pool(3, 2, ceil_mode="torch")
    blocks: dict[str, Block] = {
        "conv1": basic(64, 7, stride=2, padding=3),
        "maxpool1": pool,
        "conv2": basic(64, 1),
        "conv3": basic(192, 3),
        "maxpool2": pool,
    }
    for name, channels in INCEPTIONS.items():
        blocks[f"inception{name}"] = module(*channels)
        if name == "3b":
            blocks["maxpool3"] = pool
        if name == "4e":
            blocks["maxpool4"] = max_pool(2, 2, ceil_mode="torch")
    blocks |= {"avgpool": global_avg_pool(), "dropout": dropout(dropout_rate)}
    blocks["fc"] = linear(classes)
    return serial(**blocks)._replace(
        name="googlenet_batch_norm",
        kind=Kind("googlenet_batch_norm", (classes, dropout_rate, epsilon)),
    )


@checked
def deep_supervision(loss: Block, weights: Sequence[float] = (1.0, 0.3, 0.3)) -> Block:
    """The loss of a network with several outputs: sum over i of weights[i] loss(y[i], target).

    Args:
      loss: that of one output.
      weights: of the outputs, two or more; the paper gives its auxiliary classifiers 0.3.

    Returns:
      A graph of ``((y[0], y[1], ...), target)`` with a scalar output.

    Raises:
      BlockValueError: fewer than two weights.

    >>> import fnn, jax.numpy as jnp
    >>> E = fnn.models.deep_supervision(fnn.squared_error(), (1.0, 0.5))
    >>> y, t = (jnp.array([3.0]), jnp.array([5.0])), jnp.array([1.0])
    >>> value, residuals = E.forward({}, (y, t))
    >>> float(value), E.backward({}, residuals, 1.0)[1][0]  # 2^2 / 2 + 0.5 4^2 / 2
    (6.0, (Array([2.], dtype=float32), Array([2.], dtype=float32)))
    """
    if len(weights) < 2:
        raise BlockValueError("deep_supervision", f"weights is {weights}, needs two or more")
    nodes: list[Entry] = []
    for i, weight in enumerate(weights):
        nodes += [
            (f"y_{i}", item(i), "outputs"),
            (f"loss_{i}", loss, (f"y_{i}", "target")),
            (f"weighted_{i}", scale(weight), f"loss_{i}"),
        ]
    nodes.append(("sum", add(), tuple(f"weighted_{i}" for i in range(len(weights)))))
    whole = graph(("outputs", "target"), nodes, "sum", name="deep_supervision")

    def validate(x: Value) -> None:
        if loss.rules.validate is not None:
            outputs, *rest = x
            for y in outputs:
                loss.rules.validate((y, *rest))

    kind = Kind("deep_supervision", (tuple(weights),), (loss,))
    return whole._replace(kind=kind, rules=whole.rules._replace(validate=validate))
