"""One step of a decode: where blocks begin, what a step starts from, and what it leads to."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from model.samplers.policies import BlockView, Policy


@dataclass(frozen=True)
class Grid:
    """Where blocks begin and where decoding ends.

    `from_prompt`: blocks are counted from the prompt's end instead of the document's first token. `stop`: what an EOS in the
    answer does: `early` (ends once nothing is hidden before it), `block` (ends with its block), `never`, or `on_placement`
    (LLaDA 2.0's quirk: like early, but looked for only by a step that writes an EOS, and in the prompt as well).
    `canvas_tokens`: a fixed canvas whose places beyond the answer stay masked and are attended.
    """

    block: int
    mask: int
    eos: int | None
    from_prompt: bool = False
    stop: str = "early"
    canvas_tokens: int | None = None
    minimum_steps: int = 1  # per block, even if it is full before

    def begin(self, prompt_tokens: int) -> int:
        """The first block's first position."""
        return prompt_tokens if self.from_prompt else prompt_tokens // self.block * self.block

    def end(self, prompt_tokens: int, max_new_tokens: int) -> int:
        """The last block's end."""
        start = self.begin(prompt_tokens)
        return start - (-(prompt_tokens + max_new_tokens - start) // self.block) * self.block

    def canvas(self, prompt_tokens: int, max_new_tokens: int) -> int:
        """Positions of the whole canvas."""
        return self.canvas_tokens or self.end(prompt_tokens, max_new_tokens)


@dataclass(frozen=True)
class State:
    """All that a step depends on besides the logits: tokens of the current block, steps it has had, steps begun with it full."""

    tokens: Int[Tensor, "*rows block"]
    step: Int[Tensor, "*rows"]
    full_steps: Int[Tensor, "*rows"]

    def __getitem__(self, index) -> "State":
        return State(self.tokens[index], self.step[index], self.full_steps[index])

    def equals(self, other: "State") -> Bool[Tensor, "*rows"]:
        """Whole states: positions, tokens and both counters (methods section 3)."""
        same = (self.tokens == other.tokens).all(-1)
        return same & (self.step == other.step) & (self.full_steps == other.full_steps)


@dataclass(frozen=True)
class Move:
    """The outcome of a step: the next state, what was written, and whether the block is done."""

    after: State
    written: Bool[Tensor, "rows block"]
    edited: Bool[Tensor, "rows block"]
    finished: Bool[Tensor, " rows"]


def advance(policy: Policy, grid: Grid, before: State, proposals, hidden_at_start, answerable) -> Move:
    """One step of the policy from `before` with the given proposals; the same function moves rows and guesses."""
    hidden = before.tokens == grid.mask
    differs = answerable & ~hidden & (proposals.tokens != before.tokens) if policy.edits else None
    doubt = proposals.doubt
    if policy.reads_confidence and not policy.edits:  # stale proposals still hold places revealed since
        doubt = torch.where(hidden, doubt, torch.inf)
    view = BlockView(hidden, doubt, before.step, hidden_at_start, proposals.entropy, differs)
    written = policy.choose(view)
    tokens = torch.where(written, proposals.tokens, before.tokens)
    edited = written & ~hidden
    was_full, is_full, step = ~hidden.any(-1), ~(tokens == grid.mask).any(-1), before.step + 1
    full_steps = before.full_steps + was_full
    finished = policy.finished(was_full, is_full, edited.any(-1), full_steps)
    if grid.minimum_steps > 1:
        finished = finished & (step >= grid.minimum_steps)
    return Move(State(tokens, step, full_steps), written, edited, finished)
