"""What a layer does to every token by itself, compiled: norms, rotation, SwiGLU and sums become few passes over memory.

Attention stays as it is (its shapes change with every batch, and it is one kernel); so do a mixture of experts, the rows asked
of the last layer and whatever runs without gradients.
"""

import torch
from torch import Tensor

from model.network.experts import MixtureOfExperts
from model.network.transformer import Transformer

OPTIONS = {"cpp.dynamic_threads": True}  # the code asks how many threads there are, instead of keeping today's number


def compile_layers(network: Transformer, rows: int) -> None:
    """From now on steps of training run compiled code. Takes one to a few minutes, seconds where the disk still has it.

    The compiler is shown `rows` tokens, always the same number, so that the code, and its rounding, is the same in a resumed run.
    To be called under the autocast of the run. ValueError where there is no compiler.
    """
    _check_compiler(network.embedding.weight.device.type)
    for layer in network.layers:
        layer.read = _Read(layer.read)
        if not isinstance(layer.feed_forward, MixtureOfExperts):
            layer.write = _Write(layer.write)
    _show(network, rows)


def _check_compiler(device: str) -> None:
    if device != "cpu":
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ValueError(
            "compile: true needs a C++ compiler and none was found: install g++, or set compile: false"
        ) from error


class _Read:
    """Layer.read, compiled for any number of rows."""

    def __init__(self, plain) -> None:
        self.plain, self.fast = plain, torch.compile(plain, dynamic=True, fullgraph=True, options=OPTIONS)

    def __call__(self, x: Tensor, turn: tuple[Tensor, Tensor], columns: Tensor | None) -> tuple[Tensor, ...]:
        used = self.fast if torch.is_grad_enabled() and columns is None else self.plain
        return used(x, turn, columns)


class _Write:
    """Layer.write, compiled for any number of rows, which it always gets as one line."""

    def __init__(self, plain) -> None:
        self.plain, self.fast = plain, torch.compile(plain, dynamic=True, fullgraph=True, options=OPTIONS)

    def __call__(self, x: Tensor, mixed: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return self.plain(x, mixed)
        return self.fast(x.flatten(0, -2), mixed.flatten(0, -2)).view(x.shape)


def _show(network: Transformer, rows: int) -> None:
    """One way forth and back through every layer, which compiles both."""
    weight = network.embedding.weight
    x = torch.zeros(1, rows, weight.shape[1], device=weight.device, dtype=weight.dtype, requires_grad=True)
    wide = torch.float32 if network.config.rotary_full_precision else weight.dtype
    turn = network.rotary(torch.zeros(1, rows, dtype=torch.long, device=weight.device), wide)
    for layer in network.layers:
        query, key, value = layer.read(x, turn, None)
        mixed = query.transpose(1, 2).flatten(2)
        found = layer.write(x, mixed).sum() + key.sum() + value.sum()
        torch.autograd.grad(found, x)
