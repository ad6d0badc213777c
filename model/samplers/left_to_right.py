"""Left-to-right decoding of a causal network with a key-value cache: the autoregressive baseline."""

from collections import deque

import torch
from tqdm import tqdm

from model.network.cache import PrefixCache
from model.network.masks import reading_pattern
from model.network.transformer import Transformer
from model.samplers.results import Decoded, Observer, Step


class LeftToRight:
    """Greedy decoding, one token per row and forward; rows of different lengths share a batch, finished ones leave it."""

    def __init__(self, network: Transformer, batch_rows: int = 64) -> None:
        if network.config.attention != "causal":
            raise ValueError(f"left_to_right needs a causal network, this one is {network.config.attention}")
        self.network, self.batch_rows = network, batch_rows

    @torch.no_grad()
    def __call__(
        self,
        prompts: list[list[int]],
        max_new_tokens: int,
        progress: bool = False,
        observer: Observer | None = None,
    ) -> list[Decoded]:
        """One answer per prompt, in order; each ends with EOS or at `max_new_tokens`. `observer`: see `Observer`."""
        config = self.network.config
        for index, prompt in enumerate(prompts):
            if not prompt or len(prompt) + max_new_tokens > config.maximum_positions:
                raise ValueError(
                    f"prompt {index} has {len(prompt)} tokens: it needs at least 1 and, with max_new_tokens {max_new_tokens}, "
                    f"at most {config.maximum_positions - max_new_tokens}"
                )
        if not prompts:
            return []
        device = self.network.embedding.weight.device
        num_slots = min(self.batch_rows, len(prompts))
        capacity = max(map(len, prompts)) + max_new_tokens
        cache = PrefixCache(config, num_slots, capacity, device, self.network.embedding.weight.dtype)
        waiting, owners = deque(enumerate(prompts)), [-1] * num_slots
        answers: list[list[tuple[int, float, float]]] = [[] for _ in prompts]
        cancelled, unfinished = False, set(range(len(prompts)))
        last = torch.zeros(num_slots, dtype=torch.long, device=device)
        with tqdm(total=len(prompts), desc="decode", unit="prompt", mininterval=2.0, disable=not progress) as bar:
            while (waiting or any(owner >= 0 for owner in owners)) and not cancelled:
                free = [slot for slot, owner in enumerate(owners) if owner < 0][: len(waiting)]
                if free:
                    taken = [waiting.popleft() for _ in free]
                    for slot, (index, _) in zip(free, taken, strict=True):
                        owners[slot] = index
                    slots = torch.tensor(free, device=device)
                    proposals = self._prefill(cache, slots, [prompt for _, prompt in taken])
                else:
                    slots = torch.tensor([s for s, owner in enumerate(owners) if owner >= 0], device=device)
                    proposals = self._step(cache, slots, last[slots])
                for slot, token, confidence, gap in zip(slots.tolist(), *proposals, strict=True):
                    answer = answers[owners[slot]]
                    answer.append((token, confidence, gap))
                    last[slot] = token
                    if observer is not None:
                        row, number = owners[slot], len(answer)
                        position = len(prompts[row]) + number - 1
                        cancelled |= bool(observer(Step(row, number, [position], [token], [confidence], [False])))
                    if token == config.eos_token_id or len(answer) == max_new_tokens:
                        unfinished.discard(owners[slot])
                        owners[slot] = -1
                        bar.update()
        return [_decoded(answer, index in unfinished) for index, answer in enumerate(answers)]

    def _prefill(self, cache: PrefixCache, slots, prompts: list[list[int]]) -> tuple[list, list, list]:
        device, longest = slots.device, max(map(len, prompts))
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        tokens = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts], device=device)
        positions = torch.arange(longest, device=device).expand(len(prompts), -1)
        allowed = reading_pattern("causal", torch.zeros_like(tokens), positions, 1).allowed()
        cache.clear(slots)
        hidden, new = self.network.forward_cached(tokens, positions, allowed, (cache, slots, 0))
        cache.append(slots, new, lengths)
        return self._propose(hidden[torch.arange(len(prompts), device=device), lengths - 1])

    def _step(self, cache: PrefixCache, slots, last) -> tuple[list, list, list]:
        lengths = cache.lengths[slots]
        extent = int(lengths.max())
        visible = cache.visible(slots, extent)
        allowed = torch.cat((visible, torch.ones_like(visible[:, :1])), 1)[:, None, None]
        hidden, new = self.network.forward_cached(last[:, None], lengths[:, None], allowed, (cache, slots, extent))
        cache.append(slots, new, torch.ones_like(slots))
        return self._propose(hidden[:, 0])

    def _propose(self, hidden) -> tuple[list, list, list]:
        best, token = self.network.head(hidden).double().softmax(-1).topk(2)
        if best.isnan().any():
            raise ValueError("the network returned NaN logits: the weights are damaged or overflow in this precision")
        return token[:, 0].tolist(), best[:, 0].tolist(), (best[:, 0].log() - best[:, 1].log()).tolist()


def _decoded(answer: list[tuple[int, float, float]], cancelled: bool) -> Decoded:
    """One forward per token: the first comes out of the prompt's forward, which therefore counts as decoding."""
    counters = {
        "target_forwards": len(answer),
        "prefill_forwards": 0,
        "commit_forwards": 0,
        "draft_forwards": 0,
        "rows_verified": len(answer),
    }
    tokens, confidence, gaps = zip(*answer, strict=True) if answer else ((), (), ())
    revealed_at = list(range(1, len(answer) + 1))
    return Decoded(list(tokens), revealed_at, list(confidence), counters, cancelled, min(gaps, default=float("inf")))
