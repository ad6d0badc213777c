"""What losses need of the logits, without ever holding all of them: one pass over the vocabulary, a few rows at a time.

Cross-entropy, entropy at a temperature and first guesses all follow from four numbers a row. The backward pass writes the
gradient of the logits in closed form into the memory of the logits themselves, computed again a few rows at a time; where all
rows fit into one piece it is kept instead. torch has no such loss for a CPU (its fused ones keep every logit).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

PIECE_NUMBERS = 2**21  # logits at a time: 8 MB in float32


@dataclass(frozen=True)
class Reading:
    """Of every row: log of the softmax's normaliser, logits of the ids asked for, entropy at the temperature, first guess."""

    normaliser: Float[Tensor, " rows"]
    picked: Float[Tensor, "rows ids"]
    entropy: Float[Tensor, " rows"]
    first: Int[Tensor, " rows"]

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
        return Reading(*_ReadInPieces.apply(hidden, head.weight, ids, temperature))
    logits = _wide(head(hidden))
    entropy = torch.zeros(len(logits), device=logits.device, dtype=logits.dtype)
    if temperature is not None:
        log_probabilities = (logits / temperature).log_softmax(-1)
        entropy = -(log_probabilities.exp() * log_probabilities).sum(-1)
    return Reading(logits.logsumexp(-1), logits.gather(1, ids), entropy, logits.detach().argmax(-1))


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


class _ReadInPieces(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, ids, temperature):
        device = hidden.device.type
        narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        rows = max(1, PIECE_NUMBERS // weight.shape[0])
        narrowed = weight.to(narrow)
        kept, parts = None, []
        for part, asked in zip(hidden.split(rows), ids.split(rows), strict=True):
            logits = _wide(part.to(narrow) @ narrowed.t())
            kept = logits if len(hidden) <= rows else None
            parts.append(_summary(logits, asked, temperature))
        if not parts:
            empty = hidden.new_zeros(0, dtype=torch.float64 if hidden.dtype == torch.float64 else torch.float32)
            parts = [(empty, empty.view(0, ids.shape[1]), empty, empty, ids[:, 0])]
        normaliser, picked, tempered, entropy, first = (torch.cat(values) for values in zip(*parts, strict=True))
        ctx.save_for_backward(hidden, weight, ids, normaliser, tempered, entropy, kept)
        ctx.rows, ctx.narrow, ctx.temperature = rows, narrow, temperature
        ctx.mark_non_differentiable(first)
        return normaliser, picked, entropy, first

    @staticmethod
    def backward(ctx, of_normaliser, of_picked, of_entropy, _):
        hidden, weight, ids, normaliser, tempered, entropy, kept = ctx.saved_tensors
        narrowed = weight.to(ctx.narrow)
        of_hidden, of_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        for start in range(0, len(hidden), ctx.rows):
            here = slice(start, start + ctx.rows)
            part = hidden[here].to(ctx.narrow)
            logits = _wide(part @ narrowed.t()) if kept is None else kept
            gradient = (logits - normaliser[here, None]).exp_().mul_(of_normaliser[here, None])
            if ctx.temperature is not None:  # dH/dz = -p (log p + H) / T with p = softmax(z / T)
                log_p = logits.div(ctx.temperature).sub_(tempered[here, None])
                bent = log_p.exp().mul_(log_p.add_(entropy[here, None]))
                gradient.addcmul_(bent, of_entropy[here, None], value=-1.0 / ctx.temperature)
            gradient.scatter_add_(1, ids[here], of_picked[here].to(gradient.dtype))
            gradient = gradient.to(ctx.narrow)
            of_hidden[here] = (gradient @ narrowed).to(hidden.dtype)
            of_weight += (gradient.t() @ part).to(weight.dtype)
        return of_hidden, of_weight, None, None


def _summary(logits: Tensor, ids: Tensor, temperature: float | None) -> tuple[Tensor, ...]:
    """(normaliser, picked, normaliser at the temperature, entropy, first guess) of a few rows."""
    normaliser = logits.logsumexp(-1)
    tempered, entropy = normaliser, torch.zeros_like(normaliser)
    if temperature is not None:
        scaled = logits / temperature
        tempered = scaled.logsumexp(-1)
        entropy = tempered - (scaled - tempered[:, None]).exp_().mul_(scaled).sum(-1)
    return normaliser, logits.gather(1, ids), tempered, entropy, logits.argmax(-1)
