"""Left-to-right decoding of a causal network with a key-value cache: the autoregressive baseline."""

from collections import deque

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from model.network.cache import KeyValueCache, Placement, Visible
from model.network.transformer import Transformer
from model.samplers.results import Decoded, Observer, Step
from model.samplers.sampling import GREEDY, Asked, Proposer, Sampling


class LeftToRight:
    """One token per row and forward; rows of different lengths share a batch, finished ones make place for waiting prompts.

    The first token comes out of the prompt's forward, which therefore counts as decoding.
    """

    def __init__(self, network: Transformer, batch_rows: int = 64, sampling: Sampling = GREEDY) -> None:
        if network.config.attention != "causal":
            raise ValueError(f"left_to_right needs a causal network, this one is {network.config.attention}")
        if sampling.guidance_scale:
            raise ValueError("guidance masks the prompt: a causal network has no mask token to do it with")
        self.network, self.batch_rows, self.sampling = network, batch_rows, sampling
        self.proposer = Proposer(sampling, network.config.mask_token_id)

    @torch.no_grad()
    def __call__(
        self,
        prompts: list[list[int]],
        max_new_tokens: int,
        progress: bool = False,
        observer: Observer | None = None,
    ) -> list[Decoded]:
        """One answer per prompt, in order; each ends with EOS or at `max_new_tokens`. `observer`: see `Observer`."""
        self._check(prompts, max_new_tokens)
        if not prompts:
            return []
        num_slots = min(self.batch_rows, len(prompts))
        weight = self.network.embedding.weight
        capacity = max(map(len, prompts)) + max_new_tokens
        cache = KeyValueCache(self.network.config, num_slots, capacity, weight.device, weight.dtype)
        waiting, live = deque(enumerate(prompts)), []  # live: (index of the prompt, tokens so far) by slot
        answers: list[list[tuple[int, float, float]]] = [[] for _ in prompts]
        cancelled, unfinished = False, set(range(len(prompts)))
        with tqdm(total=len(prompts), desc="decode", unit="prompt", mininterval=2.0, disable=not progress) as bar:
            while (waiting or live) and not cancelled:
                first = len(live) if waiting and len(live) < num_slots else 0
                while waiting and len(live) < num_slots:
                    index, prompt = waiting.popleft()
                    live.append((index, list(prompt)))
                for slot, found in enumerate(self._forward(cache, live, first, answers), first):
                    index, tokens = live[slot]
                    tokens.append(found[0])
                    answers[index].append(found)
                    if observer is not None:
                        step = Step(index, len(answers[index]), [len(tokens) - 1], [found[0]], [found[1]], [False])
                        cancelled |= bool(observer(step))
                for slot in reversed(range(first, len(live))):
                    index, tokens = live[slot]
                    if tokens[-1] == self.network.config.eos_token_id or len(answers[index]) == max_new_tokens:
                        unfinished.discard(index)
                        bar.update()
                        if slot != len(live) - 1:
                            cache.move(len(live) - 1, slot)
                            live[slot] = live[-1]
                        live.pop()
        return [_decoded(answer, index in unfinished) for index, answer in enumerate(answers)]

    def _check(self, prompts: list[list[int]], max_new_tokens: int) -> None:
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens {max_new_tokens} must be at least 1")
        room = self.network.config.maximum_positions - max_new_tokens
        for index, prompt in enumerate(prompts):
            if not prompt or len(prompt) > room:
                raise ValueError(
                    f"prompt {index} has {len(prompt)} tokens: it needs at least 1 and, with max_new_tokens {max_new_tokens}, "
                    f"at most {room}"
                )

    def _forward(self, cache: KeyValueCache, live, first: int, answers) -> list[tuple[int, float, float]]:
        """Token, confidence and gap for the rows from slot `first` on: what of them is not yet cached goes in."""
        rows = live[first:]
        new = [tokens if not answers[index] else tokens[-1:] for index, tokens in rows]
        counts = torch.tensor([len(tokens) for tokens in new])
        row = torch.repeat_interleave(torch.arange(len(rows)), counts)
        ends = torch.tensor([len(tokens) for _, tokens in rows])
        positions = torch.arange(row.shape[0]) - counts.cumsum(0)[row] + ends[row]
        nothing = torch.zeros_like(row)
        visible = Visible(positions + 1, nothing, nothing, nothing, nothing)
        placement = Placement(cache, row, positions, visible, len(rows), int(ends.max()), first)
        device = cache.storage.device
        line = torch.stack((torch.tensor([token for tokens in new for token in tokens]), positions)).to(device)
        hidden = self.network.forward_cached(*line, placement, (counts.cumsum(0) - 1).to(device))
        asked = self._asked([index for index, _ in rows], ends, [tokens for _, tokens in rows])
        found = self.proposer.propose(self.proposer.guided(self.network.head(hidden), asked), asked).cpu()
        if found[1].isnan().any():
            raise ValueError("the network returned NaN logits: its weights are damaged or overflow in this precision")
        token, doubt, gap, _ = found
        return list(zip(token.long().tolist(), (1.0 / (1.0 + doubt)).tolist(), gap.tolist(), strict=True))

    def _asked(self, indices: list[int], ends: Int[Tensor, " rows"], texts: list[list[int]]) -> Asked:
        nothing = torch.zeros_like(ends)
        present = None
        if self.sampling.repeat_penalty != 1.0:
            present = torch.zeros(len(texts), self.network.unembedding.weight.shape[0], dtype=torch.bool)
            for row, tokens in enumerate(texts):
                present[row, tokens] = True
        return Asked(nothing, nothing, nothing, torch.stack((torch.tensor(indices), ends, nothing, nothing)), present)


def _decoded(answer: list[tuple[int, float, float]], cancelled: bool) -> Decoded:
    """One forward per token."""
    count = len(answer)
    counters = {"target_forwards": count, "prefill_forwards": 0, "commit_forwards": 0, "wasted_forwards": 0}
    counters |= {"draft_forwards": 0, "steps": count, "rows_verified": count, "target_tokens": count, "draft_tokens": 0}
    tokens, confidence, gaps = zip(*answer, strict=True) if answer else ((), (), ())
    return Decoded(
        list(tokens),
        list(range(1, count + 1)),
        list(confidence),
        counters,
        cancelled=cancelled,
        smallest_gap=min(gaps, default=float("inf")),
    )
