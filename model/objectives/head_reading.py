"""What losses need of the logits, without ever holding all of them: one pass over the vocabulary, a few rows at a time.

Cross-entropy, entropy at a temperature and right guesses all follow from four numbers a row. The backward pass writes the
gradient of the logits in closed form, a few rows at a time; what it needs of them is kept up to KEPT_NUMBERS and computed again
beyond. torch has no such loss for a CPU (its fused ones keep every logit, several times).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from model.network.repeated_shapes import spare_rows

PIECE_NUMBERS = 2**21  # logits at a time: 8 MB in float32
KEPT_NUMBERS = 2**22  # 16 MB; computing logits again costs a third of the head's products


@dataclass(frozen=True)
class Reading:
    """Of every row: log of the softmax's normaliser, logits of the ids asked for, entropy at the temperature, and whether the
    first id asked for is the likeliest (one of them, where several are)."""

    normaliser: Float[Tensor, " rows"]
    picked: Float[Tensor, "rows ids"]
    entropy: Float[Tensor, " rows"]
    right: Bool[Tensor, " rows"]

    @property
    def cross_entropy(self) -> Float[Tensor, " rows"]:
        """Nats of the first id asked for."""
        return self.normaliser - self.picked[:, 0]


def read_head(
    hidden: Float[Tensor, "rows hidden"], head, ids: Int[Tensor, "rows ids"], temperature: float | None = None
) -> Reading:
    """The reading of `head(hidden)`, in float32 or wider. Without a temperature the entropy is 0.

    A head with a `weight` (nn.Linear without a bias) is read in pieces; any other callable gives all logits at once.
    """
    if getattr(head, "weight", None) is not None and getattr(head, "bias", None) is None:
        if not (spare := spare_rows(len(hidden), hidden)):
            return Reading(*_ReadInPieces.apply(hidden, head.weight, ids, temperature))
        hidden, ids = (functional.pad(each, (0, 0, 0, spare)) for each in (hidden, ids))
        return Reading(*(each[:-spare] for each in _ReadInPieces.apply(hidden, head.weight, ids, temperature)))
    logits = _wide(head(hidden))
    entropy = torch.zeros(len(logits), device=logits.device, dtype=logits.dtype)
    if temperature is not None:
        log_probabilities = (logits / temperature).log_softmax(-1)
        entropy = -(log_probabilities.exp() * log_probabilities).sum(-1)
    picked = logits.gather(1, ids)
    return Reading(logits.logsumexp(-1), picked, entropy, (picked[:, 0] >= logits.amax(-1)).detach())


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


class _ReadInPieces(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, ids, temperature):
        device = hidden.device.type
        narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        rows = max(1, PIECE_NUMBERS // weight.shape[0])
        narrowed = weight.to(narrow)
        keeps = len(hidden) * weight.shape[0] <= KEPT_NUMBERS
        kept, parts = [], []
        for part, asked in zip(hidden.split(rows), ids.split(rows), strict=True):
            logits = _wide(part.to(narrow) @ narrowed.t())
            parts.append(_summary(logits, asked, temperature))
            kept += [logits] if keeps else []
        if not parts:
            empty = hidden.new_zeros(0, dtype=torch.float64 if hidden.dtype == torch.float64 else torch.float32)
            parts = [(empty, empty, empty.view(0, ids.shape[1]), empty, empty, ids[:, 0] > 0)]
        largest, normaliser, picked, tempered, entropy, right = (
            torch.cat(values) for values in zip(*parts, strict=True)
        )
        ctx.save_for_backward(hidden, weight, ids, largest, normaliser, tempered, entropy, *kept)
        ctx.rows, ctx.narrow, ctx.temperature = rows, narrow, temperature
        ctx.mark_non_differentiable(right)
        return normaliser, picked, entropy, right

    @staticmethod
    def backward(ctx, of_normaliser, of_picked, of_entropy, _):
        hidden, weight, ids, largest, normaliser, tempered, entropy, *kept = ctx.saved_tensors
        narrowed = weight.to(ctx.narrow)
        of_hidden, of_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        for index, start in enumerate(range(0, len(hidden), ctx.rows)):
            here = slice(start, start + ctx.rows)
            part = hidden[here].to(ctx.narrow)
            if kept:
                logits = kept[index]
            else:
                logits = _wide(part @ narrowed.t())
                _raise(logits, largest[here], ctx.temperature)
            if ctx.temperature is None:  # softmax = exp(z - largest) / exp(normaliser - largest)
                scale = of_normaliser[here] * (largest[here] - normaliser[here]).exp()
                gradient = logits * scale[:, None]
            else:  # dH/dz = -p (log p + H) / T with p = softmax(z / T)
                gradient = (logits - normaliser[here, None]).exp_().mul_(of_normaliser[here, None])
                log_p = logits.div(ctx.temperature).sub_(tempered[here, None])
                bent = log_p.exp().mul_(log_p.add_(entropy[here, None]))
                gradient.addcmul_(bent, of_entropy[here, None], value=-1.0 / ctx.temperature)
            gradient.scatter_add_(1, ids[here], of_picked[here].to(gradient.dtype))
            gradient = gradient.to(ctx.narrow)
            of_hidden[here] = (gradient @ narrowed).to(hidden.dtype)
            if ctx.narrow == weight.dtype:
                of_weight.addmm_(gradient.t(), part)
            else:
                of_weight += gradient.t() @ part
        return of_hidden, of_weight, None, None


def _raise(logits: Tensor, largest: Tensor, temperature: float | None) -> None:
    """Without a temperature the logits z become exp(z - largest), which is all that the way back needs of them."""
    if temperature is None:
        logits.sub_(largest[:, None]).exp_()


def _summary(logits: Tensor, ids: Tensor, temperature: float | None) -> tuple[Tensor, ...]:
    """(largest logit, normaliser, picked, normaliser at the temperature, entropy, first id is likeliest) of a few rows, whose
    logits are raised in place."""
    largest, picked = logits.amax(-1), logits.gather(1, ids)
    if temperature is None:
        _raise(logits, largest, None)
        normaliser = logits.sum(-1).log_().add_(largest)
        tempered, entropy = normaliser, torch.zeros_like(normaliser)
    else:
        normaliser = (logits - largest[:, None]).exp_().sum(-1).log_().add_(largest)
        scaled = logits / temperature
        raised = (scaled - (largest / temperature)[:, None]).exp_()
        total = raised.sum(-1)
        tempered = total.log().add_(largest, alpha=1.0 / temperature)
        entropy = tempered - torch.linalg.vecdot(raised, scaled).div_(total)
    return largest, normaliser, picked, tempered, entropy, picked[:, 0] >= largest
