"""The state of all rows in a batch: current block, step, and what has been written so far."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from model.network.config import NetworkConfig
from model.samplers.results import Decoded, Observer, Step

_COUNTERS = ("target_forwards", "prefill_forwards", "commit_forwards", "draft_forwards", "rows_verified")


class Rows:
    """Slots of a batch. A slot is free, or holds one prompt's decode in progress."""

    def __init__(self, config: NetworkConfig, num_slots: int, device, observer: Observer | None = None) -> None:
        block = config.block_tokens
        self.mask, self.eos, self.block = config.mask_token_id, config.eos_token_id, block
        self.blocks = torch.full((num_slots, block), self.mask, device=device)
        self.revealed_at = torch.zeros(num_slots, block, dtype=torch.long, device=device)
        self.confidence = torch.zeros(num_slots, block, dtype=torch.float64, device=device)
        self.starts = torch.zeros(num_slots, dtype=torch.long, device=device)
        self.steps = torch.zeros(num_slots, dtype=torch.long, device=device)
        self.hidden_at_start = torch.zeros(num_slots, dtype=torch.long, device=device)
        self.prompt_tokens = torch.zeros(num_slots, dtype=torch.long, device=device)
        self.gap = torch.full((num_slots,), torch.inf, dtype=torch.float64, device=device)
        self.counters = {name: torch.zeros(num_slots, dtype=torch.long, device=device) for name in _COUNTERS}
        self.observer, self.cancelled = observer, False
        self.prompt_index = [-1] * num_slots
        self.limits = [0] * num_slots
        self.written: list[list[tuple[int, int, float]]] = [[] for _ in range(num_slots)]

    def free(self) -> list[int]:
        """Slots without a prompt."""
        return [slot for slot, index in enumerate(self.prompt_index) if index < 0]

    def any_live(self) -> bool:
        """Whether any slot holds a prompt."""
        return any(index >= 0 for index in self.prompt_index)

    def live(self) -> Int[Tensor, " rows"]:
        """Slots that hold a prompt."""
        return torch.tensor([s for s, index in enumerate(self.prompt_index) if index >= 0], device=self.blocks.device)

    def begin(self, slots: list[int], taken: list[tuple[int, list[int]]], max_new_tokens: int) -> Int[Tensor, " rows"]:
        """Lay prompts into free slots; the prompt's tail stands clean in its block. Returns canvas lengths (block multiples)."""
        totals = []
        for slot, (index, prompt) in zip(slots, taken, strict=True):
            tail = prompt[len(prompt) // self.block * self.block :]
            self.prompt_index[slot], self.written[slot] = index, []
            self.limits[slot] = max_new_tokens
            totals.append(-(-(len(prompt) + max_new_tokens) // self.block) * self.block)
            self.starts[slot], self.prompt_tokens[slot] = len(prompt) - len(tail), len(prompt)
            self.blocks[slot] = self.mask
            self.blocks[slot, : len(tail)] = torch.tensor(tail, dtype=torch.long, device=self.blocks.device)
            self.hidden_at_start[slot] = self.block - len(tail)
            self.steps[slot], self.gap[slot] = 0, torch.inf
            for counter in self.counters.values():
                counter[slot] = 0
        return torch.tensor(totals, device=self.blocks.device)

    def has_hidden(self, slots: Int[Tensor, " rows"]) -> Bool[Tensor, " rows"]:
        """Rows whose current block still has a hidden token."""
        return (self.blocks[slots] == self.mask).any(1)

    def write(self, slots, reveal: Bool[Tensor, "rows block"], tokens, doubt: Float[Tensor, "rows block"], gap) -> None:
        """Fill the revealed positions and advance the step counter."""
        self.blocks[slots] = torch.where(reveal, tokens, self.blocks[slots])
        forwards = self.counters["target_forwards"][slots][:, None]
        self.revealed_at[slots] = torch.where(reveal, forwards, self.revealed_at[slots])
        self.confidence[slots] = torch.where(reveal, 1.0 / (1.0 + doubt), self.confidence[slots])
        self.gap[slots] = torch.minimum(self.gap[slots], torch.where(reveal, gap, torch.inf).amin(1))
        self.steps[slots] += 1

    def tell(self, slots, reveal: Bool[Tensor, "rows block"], before: Tensor, drafted: bool, accepted: Tensor) -> None:
        """Report what a step wrote to the observer, row by row; remember when it asks to stop."""
        assert self.observer is not None
        for row, slot in enumerate(slots.tolist()):
            columns = reveal[row].nonzero()[:, 0]
            step = Step(
                self.prompt_index[slot],
                int(self.counters["target_forwards"][slot]),
                (self.starts[slot] + columns).tolist(),
                self.blocks[slot, columns].tolist(),
                self.confidence[slot, columns].tolist(),
                (before[row, columns] != self.mask).tolist(),
                drafted,
                drafted and bool(accepted[row]),
            )
            self.cancelled |= bool(self.observer(step))

    def abandon(self) -> list[tuple[int, Decoded]]:
        """Results of rows that were cancelled: what was written before the first hidden position."""
        slots = self.live()
        if slots.numel():
            self._keep(slots)
        found = []
        for slot in slots.tolist():
            tokens = [token for token, _, _ in self.written[slot]]
            end = tokens.index(self.mask) if self.mask in tokens else len(tokens)
            self.written[slot] = self.written[slot][:end]
            decoded = self._result(slot)
            decoded.cancelled = True
            found.append((self.prompt_index[slot], decoded))
            self.prompt_index[slot] = -1
        return found

    def count_guess(self, slots, depth: int, found: Bool[Tensor, " rows"]) -> None:
        """Remember that rows looked for their state among guesses of this depth, and which found it."""
        for name, amount in ((f"tried_{depth}", 1), (f"matched_{depth}", found.long())):
            counter = self.counters.setdefault(name, torch.zeros_like(self.starts))
            counter[slots] += amount

    def ended(self, slots: Int[Tensor, " rows"], eos_early_stop: bool) -> Bool[Tensor, " rows"]:
        """Rows that are finished: an EOS in the answer with nothing hidden before it, or a full block at the length limit.

        Without early stop the block must be full before its EOS counts.
        """
        blocks = self.blocks[slots]
        columns = self.starts[slots][:, None] + torch.arange(self.block, device=slots.device)
        hidden = blocks == self.mask
        is_answer_eos = (blocks == self.eos) & (columns >= self.prompt_tokens[slots][:, None])
        before = hidden.long().cumsum(1) == 0 if eos_early_stop else ~hidden.any(1, keepdim=True)
        limits = self.prompt_tokens[slots] + torch.tensor([self.limits[s] for s in slots.tolist()], device=slots.device)
        at_limit = ~hidden.any(1) & (columns[:, -1] + 1 >= limits)
        return (is_answer_eos & before).any(1) | at_limit

    def next_block(self, slots: Int[Tensor, " rows"]) -> None:
        """Keep the full block's tokens as written and hide everything in the next one."""
        self._keep(slots)
        self.starts[slots] += self.block
        self.blocks[slots] = self.mask
        self.hidden_at_start[slots] = self.block
        self.steps[slots] = 0

    def _keep(self, slots: Int[Tensor, " rows"]) -> None:
        skip = (self.prompt_tokens[slots] - self.starts[slots]).clamp_min(0).tolist()
        values = zip(
            slots.tolist(),
            skip,
            self.blocks[slots].tolist(),
            self.revealed_at[slots].tolist(),
            self.confidence[slots].tolist(),
            strict=True,
        )
        for slot, first, tokens, revealed, confidence in values:
            self.written[slot].extend(list(zip(tokens, revealed, confidence, strict=True))[first:])

    def collect(self, eos_early_stop: bool) -> list[tuple[int, Decoded]]:
        """Results of finished rows, whose slots become free."""
        live = self.live()
        if not live.numel():
            return []
        finished = live[self.ended(live, eos_early_stop)]
        if not finished.numel():
            return []
        self._keep(finished)
        results = [(self.prompt_index[slot], self._result(slot)) for slot in finished.tolist()]
        for slot in finished.tolist():
            self.prompt_index[slot] = -1
        return results

    def _result(self, slot: int) -> Decoded:
        written = self.written[slot][: self.limits[slot]]
        tokens = [token for token, _, _ in written]
        end = tokens.index(self.eos) + 1 if self.eos in tokens else len(tokens)
        counters = {name: int(counter[slot]) for name, counter in self.counters.items()}
        return Decoded(
            tokens[:end],
            [r for _, r, _ in written[:end]],
            [c for _, _, c in written[:end]],
            counters,
            smallest_gap=float(self.gap[slot]),
        )
