"""The one block loop: rows advance block by block, each at its own pace; finished rows make place for waiting prompts.

A decoder is the deterministic map `step(state, logits(state)) -> state`, state = (block tokens, step in the block). Speculation
only adds candidates: guessed future states whose logits come from the same forward. The walk below moves a row exactly as
plain decoding would, for as long as its own next state is among the candidates, so a guess can never change a token
(methods section 3). Plain decoding is the walk with the current state as the only candidate.
"""

from collections import deque

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from tqdm import tqdm

from model.network.transformer import Transformer
from model.samplers.guesses import Guesser
from model.samplers.policies import Policy
from model.samplers.results import Decoded, Observer
from model.samplers.rows import Rows
from model.samplers.targets import CachedTarget, CanvasTarget, Proposals


class BlockDecoder:
    """Decodes prompts with `network` under `policy`; call it with token ids, get `Decoded` in the same order."""

    def __init__(
        self,
        network: Transformer,
        policy: Policy,
        batch_rows: int = 64,
        eos_early_stop: bool = True,
        guesser: Guesser | None = None,
    ) -> None:
        if network.config.attention == "causal":
            raise ValueError("a causal network decodes left to right (policy left_to_right), not in blocks")
        if network.config.mask_token_id is None:
            raise ValueError("the network has no mask token: run it through convert_to_diffusion first")
        if batch_rows < 1:
            raise ValueError(f"batch_rows {batch_rows} must be at least 1")
        self.network, self.policy, self.guesser = network, policy, guesser
        self.batch_rows, self.eos_early_stop = batch_rows, eos_early_stop

    def __call__(
        self,
        prompts: list[list[int]],
        max_new_tokens: int,
        progress: bool = False,
        observer: Observer | None = None,
    ) -> list[Decoded]:
        """One answer per prompt of at most `max_new_tokens` tokens; the order of the prompts is kept.

        `observer` hears of every step and may end decoding (see `Observer`).
        """
        self._check(prompts, max_new_tokens)
        if not prompts:
            return []
        block = self.network.config.block_tokens
        capacity = max(-(-(len(prompt) + max_new_tokens) // block) * block for prompt in prompts)
        num_slots = min(self.batch_rows, len(prompts))
        cached = self.network.config.attention == "block_causal"
        target = (CachedTarget if cached else CanvasTarget)(self.network, num_slots, capacity)
        rows = Rows(self.network.config, num_slots, self.network.embedding.weight.device, observer)
        if self.guesser is not None:
            self.guesser.start(num_slots, capacity)
        waiting = deque(enumerate(prompts))
        results: list[Decoded | None] = [None] * len(prompts)
        with tqdm(total=len(prompts), desc="decode", unit="prompt", mininterval=2.0, disable=not progress) as bar:
            while (waiting or rows.any_live()) and not rows.cancelled:
                self._admit(target, rows, waiting, max_new_tokens)
                self._advance(target, rows)
                for index, decoded in rows.collect(self.eos_early_stop):
                    results[index] = decoded
                    bar.update()
        for index, decoded in rows.abandon():
            results[index] = decoded
        nothing = dict.fromkeys(rows.counters, 0)
        return [Decoded([], [], [], dict(nothing), cancelled=True) if one is None else one for one in results]

    def _check(self, prompts: list[list[int]], max_new_tokens: int) -> None:
        config = self.network.config
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens {max_new_tokens} must be at least 1")
        for index, prompt in enumerate(prompts):
            if not prompt:
                raise ValueError(f"prompt {index} is empty: give at least one token")
            if config.mask_token_id in prompt:
                raise ValueError(
                    f"prompt {index} contains the mask token {config.mask_token_id}: it would count as hidden text"
                )
            if len(prompt) + max_new_tokens > config.maximum_positions:
                raise ValueError(
                    f"prompt {index} has {len(prompt)} tokens: with max_new_tokens {max_new_tokens} that exceeds the context of "
                    f"{config.maximum_positions}; shorten one of them"
                )

    def _admit(self, target, rows: Rows, waiting: deque, max_new_tokens: int) -> None:
        slots = rows.free()[: len(waiting)]
        if not slots:
            return
        taken = [waiting.popleft() for _ in slots]
        index = torch.tensor(slots, device=rows.blocks.device)
        prompts = [prompt for _, prompt in taken]
        totals = rows.begin(slots, taken, max_new_tokens)
        forwards = target.admit(index, prompts, totals)
        rows.counters["prefill_forwards"][index] += forwards
        if self.guesser is not None:
            self.guesser.admit(index, prompts, totals)

    @torch.no_grad()
    def _advance(self, target, rows: Rows) -> None:
        """One target forward for all live rows, then walk every row as far as its states were foreseen."""
        slots = rows.live()
        states, steps = rows.blocks[slots][:, None], rows.steps[slots][:, None]
        decoding = rows.has_hidden(slots)
        if self.guesser is not None:
            states, steps = self.guesser.extend(slots, states, steps, rows, self.policy)
        proposals = target.forward(slots, states, rows.starts[slots])
        rows.counters["target_forwards"][slots] += decoding.long()
        rows.counters["commit_forwards"][slots] += (~decoding).long()
        rows.counters["rows_verified"][slots] += states.shape[1]
        last = self._walk(rows, slots, states, steps, proposals)
        if self.guesser is not None:
            self.guesser.observe(slots, rows, last, proposals)
        self._finish_blocks(target, rows, slots, states, proposals)

    def _walk(self, rows: Rows, slots, states, steps, proposals: Proposals) -> Int[Tensor, " rows"]:
        """Move every row through foreseen states; returns the candidate whose logits each row used last."""
        last = torch.zeros_like(slots)
        moving = rows.has_hidden(slots)
        depth = 0
        while True:
            found, which = _find(states, steps, rows.blocks[slots], rows.steps[slots])
            if depth:
                rows.count_guess(slots[moving], depth, found[moving])
            moving = moving & found
            if not moving.any():
                return last
            chosen, which = slots[moving], which[moving]
            pick = (moving.nonzero()[:, 0], which)
            doubt = proposals.doubt[pick]
            reveal = self.policy.reveal(doubt, rows.steps[chosen], rows.hidden_at_start[chosen])
            before = rows.blocks[chosen] if rows.observer else None
            rows.write(chosen, reveal, proposals.tokens[pick], doubt, proposals.gap[pick])
            if before is not None:
                accepted, _ = _find(states[moving], steps[moving], rows.blocks[chosen], rows.steps[chosen])
                rows.tell(chosen, reveal, before, drafted=depth + 1 < states.shape[1], accepted=accepted)
            last[moving] = which
            moving = moving & rows.has_hidden(slots) & ~rows.ended(slots, self.eos_early_stop)
            depth += 1
            if depth >= states.shape[1] or not moving.any():
                return last

    def _finish_blocks(self, target, rows: Rows, slots, states, proposals: Proposals) -> None:
        """Rows whose block is full keep it (when its keys and values were in this forward) and go on to the next block."""
        full = ~rows.has_hidden(slots) & ~rows.ended(slots, self.eos_early_stop)
        found, which = (states == rows.blocks[slots][:, None]).all(-1).max(1)
        ready = full & (found if target.needs_commit else torch.ones_like(found))
        if not ready.any():
            return
        index = ready.nonzero()[:, 0]
        done = slots[index]
        target.commit(done, rows.starts[done], rows.blocks[done], index, which[index], proposals)
        if self.guesser is not None:
            self.guesser.commit(done, rows)
        rows.next_block(done)


def _find(
    states: Int[Tensor, "rows candidates block"], steps: Int[Tensor, "rows candidates"], block: Tensor, step: Tensor
) -> tuple[Bool[Tensor, " rows"], Int[Tensor, " rows"]]:
    """Whether each row's whole state (tokens, positions and step counter) is among its candidates, and which one."""
    same = (states == block[:, None]).all(-1) & (steps == step[:, None])
    found, which = same.max(1)
    return found, which
