"""How often the draft's first guess is the token that the target reveals, asked in the very states that the target decoded in."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from model.benchmarks.scoring import tokens_per_forward
from model.network.masks import AttentionPattern
from model.network.transformer import Transformer
from model.samplers.results import Step


@dataclass(frozen=True)
class State:
    """What the target read before a step, hidden places holding the mask token, and what the step revealed there."""

    row: int
    tokens: list[int]
    positions: list[int]
    revealed: list[int]


def agreement(
    draft: Transformer, prompts: Sequence[list[int]], steps: Iterable[Step], max_new_tokens: int, batch_rows: int
) -> dict[str, float]:
    """value, low, high (95 %, bootstrap over prompts) and the number of tokens; `steps` are those of plain decoding."""
    agreed, asked = [0] * len(prompts), [0] * len(prompts)
    by_length: dict[int, list[State]] = defaultdict(list)
    for state in states_of(draft, prompts, steps, max_new_tokens):
        by_length[len(state.tokens)].append(state)
    for _, states in sorted(by_length.items()):
        for start in range(0, len(states), batch_rows):
            part = states[start : start + batch_rows]
            for state, guesses in zip(part, first_guesses(draft, [state.tokens for state in part]), strict=True):
                agreed[state.row] += sum(
                    int(guesses[place]) == token for place, token in zip(state.positions, state.revealed, strict=True)
                )
                asked[state.row] += len(state.positions)
    # A ratio of two sums over answers, as tokens per forward is.
    interval = tokens_per_forward(agreed, asked)
    return {**{name: round(value, 4) for name, value in interval.as_dict().items()}, "tokens": sum(asked)}


def states_of(
    draft: Transformer, prompts: Sequence[list[int]], steps: Iterable[Step], max_new_tokens: int
) -> Iterable[State]:
    """The states in order. A block-causal network reads to the end of the block under way, another one the whole canvas."""
    config = draft.config
    assert config.mask_token_id is not None
    block, reads_on = config.block_tokens, config.attention == "bidirectional"
    ends = [len(prompt) + max_new_tokens for prompt in prompts]
    ends = [-(-end // block) * block for end in ends]
    canvas = [prompt + [config.mask_token_id] * (end - len(prompt)) for prompt, end in zip(prompts, ends, strict=True)]
    for step in steps:
        hidden = [place for place, edited in zip(step.positions, step.edited, strict=True) if not edited]
        written = dict(zip(step.positions, step.tokens, strict=True))
        if hidden:
            end = len(canvas[step.row]) if reads_on else (max(hidden) // block + 1) * block
            yield State(step.row, canvas[step.row][:end], hidden, [written[place] for place in hidden])
        for place, token in written.items():
            canvas[step.row][place] = token


@torch.no_grad()
def first_guesses(draft: Transformer, rows: list[list[int]]) -> torch.Tensor:
    """The likeliest token of every place, never the mask token; rows of one length."""
    config, device = draft.config, next(draft.parameters()).device
    tokens = torch.tensor(rows, device=device)
    positions = torch.arange(tokens.shape[1], device=device).expand(tokens.shape)
    pattern = AttentionPattern(config.attention, torch.zeros_like(tokens), positions, config.block_tokens)
    logits = draft.head(draft(tokens, positions, pattern)).float()
    logits[..., config.mask_token_id] = -torch.inf
    return logits.argmax(-1).cpu()
