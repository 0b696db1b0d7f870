"""What other libraries call things, and what is called so here."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_NAMES = {
    "dense": "linear", "fc": "linear", "conv1d": "conv", "conv2d": "conv", "convolution": "conv",
    "maxpool1d": "max_pool", "maxpool2d": "max_pool", "avgpool1d": "avg_pool",
    "avgpool2d": "avg_pool", "averagepooling2d": "avg_pool", "maxpooling2d": "max_pool",
    "adaptiveavgpool2d": "global_avg_pool", "globalaveragepooling2d": "global_avg_pool",
    "batchnorm1d": "batch_norm", "batchnorm2d": "batch_norm", "batchnormalization": "batch_norm",
    "layernormalization": "layer_norm", "embed": "embedding", "lookup": "embedding",
    "sequential": "serial", "chain": "serial", "compose": "serial", "skip": "residual",
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
    "hvp": "curvature.hvp", "hessian": "curvature.hessian", "draw": "whiteboard.draw",
}  # fmt: skip
_ARGUMENTS = {
    "lr": "learning_rate", "bias": "use_bias", "outfeatures": "features", "filters": "features",
    "outchannels": "features", "units": "features", "kernelsize": "kernel", "poolsize": "window",
    "p": "rate", "validationdata": "validation", "sampleweight": "weights",
    "classweight": "class_weights", "nepochs": "epochs", "callbacks": "after_epoch",
    "activation": "nonlinearity", "tolerance": "min_improvement", "tol": "min_improvement",
    "mindelta": "min_improvement",
}  # fmt: skip


def meant(name: str, names: Iterable[str]) -> str:
    """Which of ``names`` was meant, as ``did you mean ...?``; '' where nothing is close.

    >>> meant("Conv2d", ["conv", "relu"]), meant("ReLU", ["conv", "relu"]), meant("x", ["conv"])
    ('did you mean conv?', 'did you mean relu?', '')
    """
    return _meant(name, names, _NAMES)


def argument_meant(name: str, names: Iterable[str]) -> str:
    """The same for the arguments of a function.

    >>> argument_meant("lr", ["learning_rate"]), argument_meant("epoch", ["epochs"])
    ('did you mean learning_rate?', 'did you mean epochs?')
    """
    names = list(names)
    elsewhere = {theirs: ours for theirs, ours in _ARGUMENTS.items() if ours in names}
    return _meant(name, names, elsewhere)


def _meant(name: str, names: Iterable[str], elsewhere: dict[str, str]) -> str:
    plain = {_plain(ours): ours for ours in names}
    close = difflib.get_close_matches(_plain(name), [*elsewhere, *plain], n=1, cutoff=0.75)
    if not close:
        return ""
    return f"did you mean {elsewhere.get(close[0]) or plain[close[0]]}?"


def _plain(name: str) -> str:
    return name.replace("_", "").lower()
