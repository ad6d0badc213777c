"""Where guesses of future states come from: a draft network, or the target's own last logits (self-drafting).

A guesser may be as wrong as it likes: the walk only follows a guess that equals the row's own next state.
"""

from typing import TYPE_CHECKING, Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from model.network.transformer import Transformer
from model.samplers.policies import Policy
from model.samplers.targets import CachedTarget, CanvasTarget, Proposals

if TYPE_CHECKING:
    from model.samplers.rows import Rows


class Guesser(Protocol):
    """Extends each row's current state by guessed future states of the same block."""

    def start(self, num_slots: int, capacity: int) -> None:
        """A new batch begins."""
        ...

    def admit(self, slots: Tensor, prompts: list[list[int]], totals: Tensor) -> None:
        """Prompts enter slots."""
        ...

    def extend(self, slots, states, steps, rows: "Rows", policy: Policy) -> tuple[Tensor, Tensor]:
        """Candidates [rows, 1 + depth, block] and their step counters, the current state first."""
        ...

    def observe(self, slots: Tensor, rows: "Rows", last: Int[Tensor, " rows"], proposals: Proposals) -> None:
        """The target's proposals of the step each row took last."""
        ...

    def commit(self, slots: Tensor, rows: "Rows") -> None:
        """Rows finished their block."""
        ...


def advance(policy: Policy, blocks, steps, hidden_at_start, mask: int, tokens, doubt) -> tuple[Tensor, Tensor]:
    """The state after one policy step with the given proposals; full blocks stay as they are."""
    hidden = blocks == mask
    reveal = policy.reveal(torch.where(hidden, doubt, torch.inf), steps, hidden_at_start)
    return torch.where(reveal, tokens, blocks), steps + hidden.any(1).long()


class StaleGuesser:
    """Self-drafting: the target's logits of the last visited state, applied again and again. Costs no forward."""

    def __init__(self, depth: int) -> None:
        self.depth = _checked_depth(depth)
        self.tokens = self.doubt = torch.empty(0)

    def start(self, num_slots: int, capacity: int) -> None:
        """Nothing is known about any row."""
        self.tokens = self.doubt = torch.empty(0)
        self.num_slots = num_slots

    def admit(self, slots, prompts, totals) -> None:
        """A new prompt has no stale logits."""
        self.commit(slots, None)

    def extend(self, slots, states, steps, rows, policy):
        """States reached by repeating the policy on the stale proposals; none known means the current state repeated."""
        if not self.tokens.numel():
            return states, steps
        tokens, doubt = self.tokens[slots], self.doubt[slots]
        current, step = states[:, 0], steps[:, 0]
        all_states, all_steps = [current], [step]
        known = doubt.isfinite().any(1)
        for _ in range(self.depth if bool((known & rows.has_hidden(slots)).any()) else 0):
            moved, next_step = advance(policy, current, step, rows.hidden_at_start[slots], rows.mask, tokens, doubt)
            current = torch.where(known[:, None], moved, current)
            step = torch.where(known, next_step, step)
            all_states.append(current)
            all_steps.append(step)
        return torch.stack(all_states, 1), torch.stack(all_steps, 1)

    def observe(self, slots, rows, last, proposals: Proposals) -> None:
        """Remember the proposals at the last visited state."""
        if not self.tokens.numel():
            shape = (self.num_slots, proposals.tokens.shape[2])
            self.tokens = torch.zeros(shape, dtype=torch.long, device=slots.device)
            self.doubt = torch.full(shape, torch.inf, dtype=torch.float64, device=slots.device)
        pick = (torch.arange(slots.shape[0], device=slots.device), last)
        self.tokens[slots], self.doubt[slots] = proposals.tokens[pick], proposals.doubt[pick]

    def commit(self, slots, rows) -> None:
        """A new block: the old logits say nothing about it."""
        if self.tokens.numel():
            self.doubt[slots] = torch.inf


class DraftGuesser:
    """A smaller network runs the same policy from the same state for `depth` steps on its own cache."""

    def __init__(self, network: Transformer, target: Transformer, depth: int) -> None:
        self.network, self.depth = network, _checked_depth(depth)
        _check_compatible(network, target)

    def start(self, num_slots: int, capacity: int) -> None:
        """A cache of the draft's own."""
        cached = self.network.config.attention == "block_causal"
        self.source = (CachedTarget if cached else CanvasTarget)(self.network, num_slots, capacity)

    def admit(self, slots, prompts, totals) -> None:
        """The draft reads the prompts too."""
        self.source.admit(slots, prompts, totals)

    def extend(self, slots, states, steps, rows, policy):
        """The draft's own next states; one draft forward per step of depth."""
        current, step = states[:, 0], steps[:, 0]
        all_states, all_steps = [current], [step]
        for _ in range(self.depth):
            hidden = (current == rows.mask).any(1)
            if not hidden.any():
                break
            proposals = self.source.forward(slots, current[:, None], rows.starts[slots])
            rows.counters["draft_forwards"][slots] += hidden.long()
            current, step = advance(
                policy,
                current,
                step,
                rows.hidden_at_start[slots],
                rows.mask,
                proposals.tokens[:, 0],
                proposals.doubt[:, 0],
            )
            all_states.append(current)
            all_steps.append(step)
        return torch.stack(all_states, 1), torch.stack(all_steps, 1)

    def observe(self, slots, rows, last, proposals) -> None:
        """The draft does not listen to the target."""

    def commit(self, slots, rows) -> None:
        """The draft keeps its own keys and values of the finished block: one more draft forward."""
        blocks = rows.blocks[slots]
        proposals = (
            self.source.forward(slots, blocks[:, None], rows.starts[slots]) if self.source.needs_commit else None
        )
        if proposals is not None:
            rows.counters["draft_forwards"][slots] += 1
        index = torch.arange(slots.shape[0], device=slots.device)
        self.source.commit(slots, rows.starts[slots], blocks, index, torch.zeros_like(index), proposals)


def _checked_depth(depth: int) -> int:
    if depth < 1:
        raise ValueError(f"speculation depth {depth} must be at least 1")
    return depth


def _check_compatible(draft: Transformer, target: Transformer) -> None:
    """Draft and target must share vocabulary, mask token and block grid; a mismatch is an error, never a fallback."""
    for name in ("vocabulary_size", "mask_token_id", "eos_token_id", "block_tokens"):
        ours, theirs = getattr(draft.config, name), getattr(target.config, name)
        if ours != theirs:
            raise ValueError(
                f"draft and target differ in {name} ({ours} and {theirs}): the draft must be distilled from this target"
            )
