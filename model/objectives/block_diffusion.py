"""Block diffusion (arXiv:2503.09573; LLaDA 2.0 eq. 1): each block is denoised given the clean blocks before it.

The network reads `[x_t ; x_0]`. Only blocks that hold a graded token need a noisy copy: fine-tuning reads prompt + 2 x answer
rows instead of 2 x length, with the same loss and gradients (a test proves it).
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from model.network.masks import AttentionPattern
from model.noise import HidingConfig, draw_hidden
from model.objectives.objective import Head, Terms, View, diffusion_counts, diffusion_terms
from model.text.batch import Batch


@dataclass(frozen=True)
class BlockDiffusion:
    """One t per block; the loss bounds the negative log-likelihood per maskable token, and at block size 1 equals it."""

    mask_token_id: int
    block_tokens: int
    hiding: HidingConfig = field(default_factory=HidingConfig)

    @property
    def weights(self) -> dict[str, float]:
        """The bound is the loss; accuracy is only measured."""
        return {"diffusion": 1.0, "accuracy": 0.0}

    def corrupt(self, batch: Batch, rng: torch.Generator) -> View:
        """Noisy copies of the blocks with graded tokens, then the clean row. Documents start on the block grid."""
        length = batch.tokens.shape[1]
        blocks = torch.arange(length, device=batch.tokens.device).div(self.block_tokens, rounding_mode="floor")
        segments = blocks.expand(batch.tokens.shape)
        hidden, weights = draw_hidden(segments, batch.graded, self.hiding, rng)
        copied, real = noisy_columns(batch.graded, self.block_tokens)

        def noisy(values: Tensor) -> Tensor:
            return values.gather(1, copied)

        graded = noisy(hidden) & real
        tokens = torch.where(graded, self.mask_token_id, noisy(batch.tokens))
        clean = torch.zeros_like(batch.graded)
        pattern = AttentionPattern(
            "block_diffusion",
            torch.cat((torch.where(real, noisy(batch.documents), -1), batch.documents), 1),
            torch.cat((noisy(batch.positions), batch.positions), 1),
            self.block_tokens,
            torch.cat((torch.ones_like(real), clean), 1),
        )
        return View(
            tokens=torch.cat((tokens, batch.tokens), 1),
            positions=pattern.positions,
            pattern=pattern,
            graded=torch.cat((graded, clean), 1),
            targets=noisy(batch.tokens)[graded],
            weights=noisy(weights)[graded],
            maskable=batch.graded.sum().float(),
        )

    def score(self, hidden, head: Head, view: View) -> Terms:
        """Weighted cross-entropy on the hidden tokens."""
        return diffusion_terms(head(hidden), view)

    def counts(self, view: View) -> dict[str, Tensor]:
        """Maskable tokens, hidden tokens."""
        return diffusion_counts(view)


def noisy_columns(
    graded: Bool[Tensor, "batch length"], block_tokens: int
) -> tuple[Int[Tensor, "batch copied"], Bool[Tensor, "batch copied"]]:
    """Columns of every row that need a noisy copy, row by row in order, padded to the longest row; and which are real."""
    batch, length = graded.shape
    if length % block_tokens:
        raise ValueError(
            f"rows of {length} tokens are not a multiple of block_tokens {block_tokens}: choose one that divides"
        )
    needed = graded.view(batch, -1, block_tokens).any(-1)
    order = (~needed).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(needed.sum(1).max())]
    real = needed.gather(1, order)
    inside = torch.arange(block_tokens, device=graded.device)
    columns = (order[:, :, None] * block_tokens + inside).flatten(1)
    return columns, real.repeat_interleave(block_tokens, 1)
