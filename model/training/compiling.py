"""torch.compile of what a layer does to every token by itself: norms, products, rotation, SwiGLU, sums, for any number of rows.

Attention between tokens stays as it is: documents come in groups that change from step to step. Mixtures keep their
feed-forward, whose shapes follow the routing.
"""

import os
import shutil

import torch

from model.network.feed_forward import FeedForward
from model.network.transformer import Transformer


def compile_layers(network: Transformer) -> None:
    """The layers of `network` run compiled code from now on, made at the first step (a minute on a CPU, kept on disk).

    ValueError where there is no compiler to make it with.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ValueError(
            f"compile is true, and there is no C++ compiler '{compiler}': install one, or set compile: false"
        )
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no worker processes that could outlive this one
    for layer in network.layers:
        layer.read = torch.compile(layer.read, dynamic=True)
        if isinstance(layer.feed_forward, FeedForward):
            layer.write = torch.compile(layer.write, dynamic=True)
