"""Block diffusion (arXiv:2503.09573; LLaDA 2.0 eq. 1): each block is denoised given the clean blocks before it.

The network reads `[x_t ; x_0]`. Only blocks that hold a graded token need a noisy copy: fine-tuning reads prompt + 2 x answer
rows instead of 2 x length, with the same loss and gradients (a test proves it).
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from model.network.documents import FlatDocuments
from model.noise import HidingConfig, complement, draw_hidden, weighed
from model.objectives.flat import document_numbers, flat_rows
from model.objectives.head_reading import read_head
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
        """The view of hidden tokens drawn block by block; blocks count from a document's start."""
        return self.view(batch, *self.draw(batch, rng))

    def draw(
        self, batch: Batch, rng: torch.Generator
    ) -> tuple[Bool[Tensor, "batch length"], Float[Tensor, "batch length"]]:
        """What is hidden, block by block, and its weights."""
        return draw_hidden(block_numbers(batch, self.block_tokens), batch.graded, self.hiding, rng)

    def parts(self, batch: Batch) -> Int[Tensor, "batch length"]:
        """Which part of its document a token lies in: tokens of one part share one t."""
        return batch.positions.div(self.block_tokens, rounding_mode="floor")

    def view(self, batch: Batch, hidden: Bool[Tensor, "batch length"], weights: Float[Tensor, "batch length"]) -> View:
        """Noisy copies of a document's blocks with graded tokens, clean ones of blocks before."""
        copied, clean = needed_copies(batch, document_numbers(batch), block_numbers(batch, self.block_tokens))
        draws = [(hidden, weights)]
        if self.hiding.complementary:  # a second noisy copy that shares the clean one
            draws.append(complement(hidden, batch.graded, weights))
        rows = flat_rows(document_numbers(batch), *[copied] * len(draws), clean)
        is_copy = [(rows.real & (rows.copy == number))[None] for number in range(len(draws))]
        noisy = sum(mask.long() * (number + 1) for number, mask in enumerate(is_copy))
        graded = torch.stack([rows.take(drawn) & mask for (drawn, _), mask in zip(draws, is_copy, strict=True)]).any(0)
        weight = sum(rows.take(own) * mask for (_, own), mask in zip(draws, is_copy, strict=True))
        targets, positions = rows.take(batch.tokens), rows.take(batch.positions)
        weight, maskable = weighed(weight[graded], len(draws) * batch.graded.sum().float(), self.hiding)
        return View(
            tokens=torch.where(graded, self.mask_token_id, targets),
            positions=positions,
            pattern=FlatDocuments("block_diffusion", rows.groups, positions, rows.real[None], self.block_tokens, noisy),
            graded=graded,
            targets=targets[graded],
            weights=weight,
            maskable=maskable,
            source=rows.source[graded[0]],
        )

    def score(self, hidden, head: Head, view: View) -> Terms:
        """Weighted cross-entropy on the hidden tokens."""
        return diffusion_terms(read_head(hidden, head, view.targets[:, None]), view)

    def counts(self, view: View) -> dict[str, Tensor]:
        """Maskable tokens, hidden tokens."""
        return diffusion_counts(view)


def block_numbers(batch: Batch, block_tokens: int) -> Int[Tensor, "batch length"]:
    """One number per block of a row, rising along it: the column's block where documents start on the grid of these blocks."""
    column = torch.arange(batch.tokens.shape[1], device=batch.tokens.device).expand(batch.tokens.shape)
    real = batch.documents >= 0
    if not ((column - batch.positions)[real] % block_tokens).any():
        return column.div(block_tokens, rounding_mode="floor")
    begins = real & (batch.positions % block_tokens == 0)
    return (begins.cumsum(1) - 1).clamp_min(0)


def needed_copies(
    batch: Batch, documents: Int[Tensor, "batch length"], blocks: Int[Tensor, "batch length"]
) -> tuple[Bool[Tensor, "batch length"], Bool[Tensor, "batch length"]]:
    """Noisy copies: tokens of blocks with a graded one. Clean copies: tokens before the last such block of their document."""
    real = documents >= 0
    most = int(blocks.max()) + 1
    graded_blocks = torch.zeros(len(blocks), most, dtype=torch.bool, device=blocks.device)
    graded_blocks = graded_blocks.scatter_reduce_(1, blocks, batch.graded, "amax")
    copied = graded_blocks.gather(1, blocks) & real
    last = torch.full((int(documents.max()) + 2,), -1, device=blocks.device)  # of -1, padding, too
    last.scatter_reduce_(0, (documents + 1).flatten(), torch.where(copied, blocks, -1).flatten(), "amax")
    return copied, real & (blocks < last[documents + 1])
