"""The model that is measured: a checkpoint with its tokenizer, under any decoding policy, its confidence adjustable."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from model.benchmarks.harness import UnmaskLM
from model.benchmarks.likelihood import Likelihood, Pair, make_likelihood
from model.benchmarks.settings import EvaluateConfig
from model.checkpoints.store import load_checkpoint
from model.samplers.decode import make_decoder
from model.text.tokenizer import load_tokenizer


class Subject:
    """A loaded checkpoint whose logits are multiplied by `logit_scale` (1 unless scale_logits was called)."""

    def __init__(self, source: Path | str, config: EvaluateConfig, seed: int = 0) -> None:
        self.checkpoint = load_checkpoint(source, device="cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = load_tokenizer(str(self.checkpoint.folder))
        self.config, self.seed = config, seed
        norm = self.checkpoint.network.norm.weight
        self._norm = None if norm is None else norm.detach().clone()
        self.scale_logits(1.0)

    @property
    def attention(self) -> str:
        """How the network reads: causal, bidirectional or block_causal."""
        return self.checkpoint.config.attention

    @property
    def eos(self) -> int | None:
        return self.checkpoint.config.eos_token_id

    def scale_logits(self, scale: float) -> None:
        """Multiplies all logits. The final norm feeds nothing but the head, so its weight is the place: tied heads stay tied."""
        if self._norm is not None:
            with torch.no_grad():
                self.checkpoint.network.norm.weight.copy_(self._norm * scale)
        elif scale != 1.0:
            raise ValueError("this network's final norm has no weight (Nano-LLaDA): its logits cannot be scaled")
        self.logit_scale = scale
        self._likelihood = remember(make_likelihood(self.checkpoint.network, self.config.likelihood_draws, self.seed))

    def decoder(self, policy: dict[str, Any] | None) -> Callable:
        return make_decoder(self.checkpoint.network, policy, batch_rows=self.config.batch_rows)

    def harness(self, policy: dict[str, Any] | None) -> UnmaskLM:
        """The model as lm-evaluation-harness sees it."""
        return UnmaskLM(
            self.tokenizer,
            self.decoder(policy),
            self._likelihood,
            maximum_tokens=self.checkpoint.config.maximum_positions,
            maximum_new_tokens=self.config.max_new_tokens,
        )

    def mean_confidence(self, questions: list[str]) -> float:
        """Mean probability of the tokens at the moment they were revealed, one per forward, over the answers to `questions`."""
        model = self.harness({"name": "one_token"})
        room = self.config.max_new_tokens
        turns = [[{"role": "user", "content": question}] for question in questions]
        prompts = [model.fit(model.encode(model.apply_chat_template(turn)), room) for turn in turns]
        values = [value for answer in model.decoder(prompts, room) for value in answer.confidence]
        return sum(values) / len(values)


def remember(likelihood: Likelihood) -> Likelihood:
    """The same function, each pair computed once: operating points differ in decoding, not in likelihood."""
    known: dict[tuple, tuple[float, bool]] = {}

    def remembered(pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        keys = [(tuple(context), tuple(continuation)) for context, continuation in pairs]
        new = list({key: pair for key, pair in zip(keys, pairs, strict=True) if key not in known}.items())
        if new:
            known.update(zip([key for key, _ in new], likelihood([pair for _, pair in new]), strict=True))
        return [known[key] for key in keys]

    return remembered


def match_confidence(
    confidence_at: Callable[[float], float], goal: float, tolerance: float = 1e-3, rounds: int = 8
) -> float:
    """The logit scale in [1/16, 16] at which `confidence_at(scale)` meets `goal`, as near as `rounds` evaluations get.

    Log-odds of the confidence are nearly linear in the log of the scale, so each next guess lies on the line through the last
    two; a guess outside the bracket becomes its middle. An evaluation is a whole decode, hence the care.
    """

    def log_odds(confidence: float) -> float:
        clipped = min(max(confidence, 1e-6), 1 - 1e-6)
        return math.log(clipped / (1 - clipped))

    low, high, tried, guess = math.log(1 / 16), math.log(16), [], 0.0
    for _ in range(rounds):
        reached = confidence_at(math.exp(guess))
        tried.append((abs(reached - goal), guess, log_odds(reached) - log_odds(goal)))
        if tried[-1][0] <= tolerance:
            break
        low, high = (guess, high) if reached < goal else (low, guess)
        slope = 1.0
        if len(tried) > 1 and tried[-1][1] != tried[-2][1]:
            slope = (tried[-1][2] - tried[-2][2]) / (tried[-1][1] - tried[-2][1])
        guess = guess - tried[-1][2] / slope if slope > 0 else math.inf
        if not low < guess < high:
            guess = (low + high) / 2
    return math.exp(min(tried)[1])
