"""What other libraries call things, and what is called so here."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

_NAMES = {
    "dense": "linear", "fc": "linear", "conv1d": "conv", "conv2d": "conv", "convolution": "conv",
    "conv3d": "conv", "convtranspose1d": "conv_transpose", "convtranspose2d": "conv_transpose",
    "convtranspose3d": "conv_transpose", "conv2dtranspose": "conv_transpose",
    "deconvolution": "conv_transpose", "deconv": "conv_transpose",
    "maxpool1d": "max_pool", "maxpool2d": "max_pool", "maxpool3d": "max_pool",
    "avgpool1d": "avg_pool", "avgpool2d": "avg_pool", "avgpool3d": "avg_pool",
    "averagepooling2d": "avg_pool", "maxpooling2d": "max_pool",
    "adaptiveavgpool2d": "global_avg_pool", "globalaveragepooling2d": "global_avg_pool",
    "batchnorm1d": "batch_norm", "batchnorm2d": "batch_norm", "batchnormalization": "batch_norm",
    "layernormalization": "layer_norm", "groupnormalization": "group_norm",
    "instancenorm1d": "instance_norm", "instancenorm2d": "instance_norm",
    "instancenorm3d": "instance_norm", "batchnorm3d": "batch_norm",
    "embed": "embedding", "lookup": "embedding", "sequential": "serial", "chain": "serial",
    "compose": "serial", "skip": "residual",
    "swish": "silu", "lrelu": "leaky_relu", "hardtanh": "hard_tanh", "logits": "softmax",
    "crossentropy": "softmax_cross_entropy (of logits) or cross_entropy (of probabilities)",
    "crossentropyloss": "softmax_cross_entropy",
    "categoricalcrossentropy": "softmax_cross_entropy",
    "sparsecategoricalcrossentropy": "softmax_cross_entropy", "nll": "cross_entropy",
    "nllloss": "cross_entropy", "bce": "binary_cross_entropy", "bceloss": "binary_cross_entropy",
    "bcewithlogitsloss": "binary_cross_entropy", "mse": "squared_error", "l2": "squared_error",
    "mseloss": "squared_error", "l2loss": "squared_error", "halfsquarederror": "squared_error",
    "meansquarederror": "squared_error",
    "train": "fit", "predict": "make_predict", "eval": "inference", "evaluate": "inference",
    "grad": "value_and_grad", "backward": "value_and_grad", "checkpoint": "rematerialize",
    "remat": "rematerialize", "checkgrads": "check.block", "mlp": "models.mlp",
    "cnn": "models.cnn", "googlenet": "models.googlenet", "momentum": "sgd", "adamw": "adam",
    "save": "models.save_weights", "load": "models.load_weights",
    "saveweights": "models.save_weights", "loadweights": "models.load_weights",
    "nn": "fnn.linear, fnn.relu, ... (all blocks are in fnn itself)", "optim": "adam or sgd",
    "hvp": "curvature.hvp", "hessian": "curvature.hessian", "draw": "whiteboard.draw",
}  # fmt: skip
_ARGUMENTS = {
    "lr": ["learning_rate"], "bias": ["use_bias"], "outfeatures": ["features"],
    "filters": ["features"], "outchannels": ["features"], "units": ["features"],
    "kernelsize": ["kernel", "window"], "poolsize": ["window"], "p": ["rate"],
    "validationdata": ["validation"], "sampleweight": ["weights"],
    "classweight": ["class_weights"], "nepochs": ["epochs"], "callbacks": ["on_epoch"],
    "activation": ["nonlinearity"], "tolerance": ["min_improvement"], "tol": ["min_improvement"],
    "mindelta": ["min_improvement"], "y": ["target"], "ytrain": ["target"], "xtrain": ["x"],
    "labels": ["target"], "targets": ["target"], "numgroups": ["groups"], "eps": ["epsilon"],
}  # fmt: skip
# What a function with such an argument has no other for, and what to do instead.
_INSTEAD = {
    ("inchannels", "infeatures", "inputdim", "inputsize", "inputshape", "inputs"): (
        "features", "leave it out: x tells"),
    ("numchannels", "numfeatures", "affine"): (
        "use_scale", "leave it out: x tells how many channels; use_scale and use_bias are affine"),
    ("activation",): ("features", "put a nonlinearity after it: fnn.layer(8, fnn.relu())"),
    ("lr", "learningrate", "momentum"): ("optimizer", "give optimizer=fnn.sgd(learning_rate)"),
    ("seed", "randomstate", "randomseed", "rng"): ("key", "give key=jax.random.key(0)"),
    ("verbose",): ("progress", "give progress=False to print nothing"),
    ("shuffle",): ("progress", "leave it out: fit shuffles in every epoch"),
    ("validationsplit",): ("validation", "split x first, and give validation=(x, target)"),
    ("weightdecay",): ("learning_rate", "take optax.adamw(0.001, weight_decay=0.01)"),
    ("betas",): ("b1", "give b1 and b2"),
}  # fmt: skip
_CALLS = "y, residuals = net.forward(params, x), or fnn.make_predict(net)(params, x)"
_OF_BLOCKS = {
    "parameters": "params = net.init(key, x) makes them, apart from the net",
    "predict": _CALLS, "apply": _CALLS, "call": _CALLS, "predictproba": _CALLS,
    "fit": "fnn.fit(net, loss, x, target)", "train": "fnn.fit(net, loss, x, target)",
    "compile": "fnn.fit(net, loss, x, target, optimizer=...)", "eval": "fnn.inference(net)",
    "evaluate": "fnn.fit(...).evaluate(x, target)", "score": "fnn.fit(...).evaluate(x, target)",
    "summary": "fnn.summary(net, x)", "save": "fnn.models.save_weights(path, params)",
    "load": "fnn.models.load_weights(path, params)", "statedict": "params = net.init(key, x)",
    "loadstatedict": "fnn.models.load_weights(path, params)", "layers": "net.graph.nodes",
    "grad": "fnn.value_and_grad(net, loss)", "add": "fnn.serial(net, block)",
    "append": "fnn.serial(net, block)",
}  # fmt: skip
_OF_FITTED = {
    "predictproba": "fitted.predict(x, proba=True)", "score": "fitted.evaluate(x, target)",
    "loss": "fitted.history[-1]['loss'], or fitted.evaluate(x, target)['loss']",
    "save": "fnn.models.save_weights(path, fitted.params); fitted.checkpoint is to go on from",
    "fit": "fnn.fit(net, loss, x, target, resume=fitted)", "net": "fitted.model.net",
    "forward": "fitted.predict(x)", "transform": "fitted.predict(x)", "call": "fitted.predict(x)",
    "coef": "fitted.params", "parameters": "fitted.params", "weights": "fitted.params",
}  # fmt: skip
_EXAMPLES = {"learning_rate": "0.001", "features": "8"}


# ---- calls -----------------------------------------------------------------------------------

_MAKERS: dict[str, inspect.Signature] = {}  # of the functions that make blocks and optimisers


def remember(make: Callable[..., Any]) -> None:
    """Keeps the signature of a function that makes blocks or optimisers, for :func:`call_of`."""
    if make.__annotations__.get("return") in ("Block", "Optimizer"):
        _MAKERS[make.__name__] = inspect.signature(make)


def call_of(maker: str, values: Sequence[Any], skip: int = 0) -> str:
    """The call that makes a block or an optimiser, without what is the default.

    Args:
      values: in the order of the maker's parameters, from number ``skip`` on.

    >>> import fnn
    >>> call_of("conv", (32, 3, 2, "SAME", 1, 1, True)), call_of("my_own", (1, True))
    ('conv(32, 3, stride=2)', 'my_own(1, True)')
    >>> fnn.max_pool(2, padding="SAME"), fnn.adam(0.1, b2=0.99), fnn.sgd(lambda step: 0.1)
    (max_pool(2, padding='SAME'), adam(0.1, b2=0.99), sgd(...))
    """
    written, in_order = list[str](), True
    parameters = list(_MAKERS[maker].parameters.values())[skip:] if maker in _MAKERS else []
    for i, value in enumerate(values):
        parameter = parameters[i] if i < len(parameters) else None
        text = repr(value)
        if " at 0x" in text:  # a function
            text = getattr(value, "__name__", "...").replace("<lambda>", "...")
        if parameter is None:
            written.append(text)
            continue
        default = parameter.default
        if parameter.name == "stride" and default is None:
            default = values[0]  # a pool's window
        plain = isinstance(value, (int, float, str, tuple))
        if value is None or (plain and value == default):
            in_order = False
            continue
        in_order = in_order and parameter.kind is not inspect.Parameter.KEYWORD_ONLY
        written.append(text if in_order else f"{parameter.name}={text}")
    return f"{maker}({', '.join(written)})"


def meant(name: str, names: Iterable[str]) -> str:
    """Which of ``names`` was meant, as ``did you mean ...?``; '' where nothing is close.

    >>> meant("Conv2d", ["conv", "relu"]), meant("ReLU", ["conv", "relu"]), meant("x", ["conv"])
    ('did you mean conv?', 'did you mean relu?', '')
    """
    close = _closest(name, names, _NAMES)
    return f"did you mean {close}?" if close else ""


def argument_meant(name: str, names: Iterable[str]) -> str:
    """The same for the arguments of a function, or what to do instead.

    >>> argument_meant("lr", ["learning_rate"]), argument_meant("epoch", ["epochs"])
    ('did you mean learning_rate?', 'did you mean epochs?')
    >>> argument_meant("in_channels", ["features", "kernel"])
    'leave it out: x tells'
    """
    names = list(names)
    elsewhere = {
        theirs: ours for theirs, options in _ARGUMENTS.items() for ours in options if ours in names
    }
    if _plain(name) not in elsewhere:
        for theirs, (needed, words) in _INSTEAD.items():
            if _plain(name) in theirs and needed in names:
                return words
    close = _closest(name, names, elsewhere)
    return f"did you mean {close}?" if close else ""


def call_meant(value: Any) -> str:
    """The call of fnn's that was meant by a name, or by something of another library; or ''.

    >>> import jax
    >>> call_meant(jax.nn.relu), call_meant("adam"), call_meant(lambda x: x)
    ('did you mean fnn.relu()?', 'did you mean fnn.adam(0.001)?', '')
    """
    name = value if isinstance(value, str) else getattr(value, "__name__", type(value).__name__)
    fnn = sys.modules["fnn"]
    close = _closest(name, fnn.__all__, _NAMES)
    make = getattr(fnn, close, None) if close in fnn.__all__ else None
    if not inspect.isfunction(make):
        return f"did you mean fnn.{close}?" if close else ""
    needed = [p.name for p in inspect.signature(make).parameters.values() if p.default is p.empty]
    return f"did you mean fnn.{close}({', '.join(_EXAMPLES.get(n, n) for n in needed)})?"


def attribute_meant(kind: str, name: str) -> str:
    """What to write for an attribute that a "block" or a "fitted" network does not have; or ''.

    >>> attribute_meant("fitted", "predict_proba"), attribute_meant("block", "x")
    ('fitted.predict(x, proba=True)', '')
    """
    return (_OF_BLOCKS if kind == "block" else _OF_FITTED).get(_plain(name), "")


def _closest(name: str, names: Iterable[str], elsewhere: dict[str, str]) -> str:
    """Which of ``names`` was meant, or what stands for a name of another library's; or ''."""
    plain = {_plain(ours): ours for ours in names}
    close = difflib.get_close_matches(_plain(name), [*elsewhere, *plain], n=1, cutoff=0.75)
    return (elsewhere.get(close[0]) or plain[close[0]]) if close else ""


def _plain(name: str) -> str:
    return name.replace("_", "").lower()
