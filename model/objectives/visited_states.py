"""Hides what a decoder had not revealed yet: states it really passes through, in the place of tokens drawn at random.

dParallel (arXiv:2509.26488) trains along the model's own trajectory; of the states that random hiding draws, a decoder visits
hardly any.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from model.objectives.block_diffusion import BlockDiffusion
from model.objectives.objective import View, Wrapped
from model.text.batch import Batch

NEVER = 65535  # what fills the last block: still hidden when the answer was complete


@dataclass(frozen=True, eq=False)
class VisitedStates(Wrapped):
    """Block diffusion on rows whose tokens were revealed at known forwards; every block is in a state of its own.

    `revealed_at`: [rows, row_tokens] uint16 by the row's number (`Batch.samples`); what is not graded is not looked at.
    """

    base: BlockDiffusion
    revealed_at: np.ndarray

    def corrupt(self, batch: Batch, rng: torch.Generator) -> View:
        """The base's view of states drawn block by block."""
        assert batch.samples is not None, "rows that know their number come from a RowLoader"
        rows = np.asarray(self.revealed_at[batch.samples[:, 0].numpy(), : batch.tokens.shape[1]], np.int64)
        times = torch.from_numpy(rows).to(batch.tokens.device)
        return self.base.view(batch, *draw_states(times, batch.graded, self.base.block_tokens, rng))


def draw_states(
    times: Int[Tensor, "batch length"], graded: Bool[Tensor, "batch length"], block_tokens: int, rng: torch.Generator
) -> tuple[Bool[Tensor, "batch length"], Float[Tensor, "batch length"]]:
    """What is hidden in one of a block's states, each as likely, and the weight n / k of its k hidden of n graded tokens.

    State s of a block: everything revealed in the s-th of its forwards or later is hidden. `length` is whole blocks.
    """
    of_block = graded.view(len(graded), -1, block_tokens)
    ordered, places = torch.where(graded, times, -1).view(of_block.shape).sort(dim=-1)
    before = torch.cat((torch.full_like(ordered[..., :1], -1), ordered[..., :-1]), -1)
    forward = (ordered != before).cumsum(-1)  # 1, 2, ...; 0 where nothing is graded
    count = forward[..., -1:]
    uniform = torch.rand(count.shape, generator=rng, device=rng.device).to(times.device)
    state = (uniform * count).floor().long().minimum(count - 1) + 1
    hidden = torch.zeros_like(forward).scatter_(-1, places, forward).ge(state) & of_block
    weight = of_block.sum(-1, keepdim=True) / hidden.sum(-1, keepdim=True).clamp_min(1)
    return hidden.view(graded.shape), weight.expand(of_block.shape).reshape(graded.shape)
