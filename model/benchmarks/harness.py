"""Our models behind lm-evaluation-harness: an `LM` made of a decoder and a likelihood, and a runner that keeps every sample.

Nothing here touches the network or reports to anybody: `lm_eval.evaluate` is called as a library on task objects.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from lm_eval.api.model import LM


class Decoded(Protocol):
    """What a decoder returns for one prompt; lists run over the answer, through the first EOS inclusive if there is one."""

    tokens: list[int]
    revealed_at: list[int]  # which forward revealed each token
    confidence: list[float]
    target_forwards: int
    counters: dict[str, int | float]


Decode = Callable[[list[list[int]], int], Sequence[Decoded]]


@dataclass(frozen=True)
class Sample:
    """One question of one benchmark: what was asked, answered and decided. `decoded` is None for likelihood tasks."""

    benchmark: str
    document: dict[str, Any]
    question: str  # as the task words it
    answer: str  # generated, or the most likely of the choices
    right: float  # 0 or 1 (or the task's own measure in [0, 1])
    decoded: Decoded | None
    is_truncated: bool = False  # its prompt did not fit the context and lost its beginning


class UnmaskLM(LM):
    """A harness model: prompts in order to the decoder, pairs to the likelihood; remembers every Decoded by (task, document).

    The decoder sees the prompt and the task's token limit, never the reference answer or its length.
    """

    def __init__(
        self,
        tokenizer,
        decoder: Decode | None = None,
        likelihood: Callable | None = None,
        *,
        maximum_tokens: int = 1024,  # prompt + answer
        maximum_new_tokens: int = 256,
    ) -> None:
        super().__init__()
        self.tokenizer, self.decoder, self.likelihood = tokenizer, decoder, likelihood
        self.maximum_tokens, self.maximum_new_tokens = maximum_tokens, maximum_new_tokens
        self.decoded: dict[tuple[str, int], Decoded] = {}
        self.truncated: set[tuple[str, int]] = set()  # (task, document) of prompts that lost their beginning

    @property
    def tokenizer_name(self) -> str:
        """A name that changes with the tokenizer: the harness keys its caches by it."""
        identity = (
            f"{self.tokenizer.name_or_path}{sorted(self.tokenizer.get_vocab().items())}{self.tokenizer.chat_template}"
        )
        return "unmask-" + hashlib.sha256(identity.encode()).hexdigest()[:16]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.tokenizer.chat_template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as prompt text. A last assistant turn without a generation prompt is left open, to be continued."""
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def fit(self, prompt: list[int], room: int) -> list[int]:
        """The prompt's last tokens that leave `room` for what follows."""
        limit = self.maximum_tokens - room
        if limit < 1:
            raise ValueError(
                f"{room} new tokens leave no room for a prompt in a context of {self.maximum_tokens} tokens"
            )
        return prompt[-limit:]

    def _fit(self, request: Any, prompt: list[int], room: int) -> list[int]:
        """`fit`, remembering whose prompt was cut."""
        kept = self.fit(prompt, room)
        if len(kept) < len(prompt):
            self.truncated.add((request.task_name, request.doc_id))
        return kept

    def generate_until(self, requests: list) -> list[str]:
        """Answers in request order; the decoder is called once per token limit and batches by itself."""
        if self.decoder is None:
            raise ValueError("this model was given no decoder, and the task generates text")
        prompts, limits = [], []
        for request in requests:
            context, options = request.args
            limits.append(min(int(options.get("max_gen_toks", self.maximum_new_tokens)), self.maximum_new_tokens))
            prompts.append(self._fit(request, self.encode(context), limits[-1]))
        decoded: dict[int, Decoded] = {}
        for limit in sorted(set(limits)):
            chosen = [number for number, own in enumerate(limits) if own == limit]
            decoded.update(zip(chosen, self.decoder([prompts[number] for number in chosen], limit), strict=True))
        texts = []
        for number, request in enumerate(requests):
            self.decoded[request.task_name, request.doc_id] = decoded[number]
            texts.append(self.text(decoded[number].tokens, request.args[1].get("until") or []))
            self.cache_hook.add_partial("generate_until", request.args, texts[-1])
        return texts

    def text(self, tokens: list[int], until: Sequence[str] | str) -> str:
        """Text of an answer up to its first EOS and the first of the `until` strings, without special tokens."""
        stop = self.tokenizer.eos_token_id
        end = tokens.index(stop) if stop in tokens else len(tokens)
        text = self.tokenizer.decode(tokens[:end], skip_special_tokens=True)
        for mark in [until] if isinstance(until, str) else until:
            text = text.split(mark)[0] if mark else text
        return text

    def loglikelihood(self, requests: list) -> list[tuple[float, bool]]:
        """(log-probability, is greedy) of every continuation given its context; an empty context becomes EOS."""
        pairs = []
        for request in requests:
            context, continuation = request.args
            kept = context.rstrip()  # blanks go with the word that follows, as the tokenizer joins them
            before = self.encode(kept) or [self.tokenizer.eos_token_id]
            after = self.encode(kept + context[len(kept) :] + continuation)[len(before) if kept else 0 :]
            room = min(len(after), self.maximum_tokens - 1)
            pairs.append((self._fit(request, before, room), after[-room:] if room else []))
        return self._likelihood(pairs)

    def loglikelihood_rolling(self, requests: list) -> list[float]:
        """Log-probability of whole texts, in windows of maximum_tokens that score every token exactly once."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        totals = []
        for request in requests:
            windows = get_rolling_token_windows(
                token_list=self.encode(request.args[0]),
                prefix_token=self.tokenizer.eos_token_id,
                max_seq_len=self.maximum_tokens - 1,
                context_len=1,
            )
            totals.append(
                sum(total for total, _ in self._likelihood([make_disjoint_window(window) for window in windows]))
            )
        return totals

    def _likelihood(self, pairs: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        if self.likelihood is None:
            raise ValueError("this model was given no likelihood, and the task compares log-probabilities")
        return list(self.likelihood(pairs))


@contextmanager
def quiet() -> Iterator[None]:
    """The harness without its per-task bars and advice: a stage's log shows one bar, and warnings only."""
    import lm_eval.api.task

    logger, bar = logging.getLogger("lm_eval"), lm_eval.api.task.tqdm
    level = logger.level
    logger.setLevel(logging.ERROR)
    lm_eval.api.task.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        lm_eval.api.task.tqdm = bar
        logger.setLevel(level)


def run_tasks(model: UnmaskLM, tasks: Sequence, *, limit: int | None = None, chat: bool = True) -> list[Sample]:
    """Every sample of every task, tasks in the given order and documents in theirs; at most `limit` documents per task.

    `chat` renders prompts with the chat template. The task's first metric under its first filter decides what is right.
    """
    from lm_eval.evaluator import evaluate

    model.decoded.clear()
    model.truncated.clear()
    with quiet():
        results = evaluate(
            lm=model,
            task_dict={"tasks": {task.task_name: task for task in tasks}, "groups": {}, "group_map": {}},
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
        )
    samples = []
    for task in tasks:
        records = results["samples"][task.task_name]
        main_filter = records[0]["filter"]
        for record in records:
            if record["filter"] == main_filter:
                samples.append(
                    Sample(
                        task.task_name,
                        record["doc"],
                        str(task.doc_to_text(record["doc"])),
                        _answer(record),
                        float(record[record["metrics"][0]]),
                        model.decoded.get((task.task_name, record["doc_id"])),
                        (task.task_name, record["doc_id"]) in model.truncated,
                    )
                )
    return samples


def _answer(record: dict[str, Any]) -> str:
    responses = [response[0] for response in record["resps"]]
    if isinstance(responses[0], str):
        return responses[0]
    likelihoods = [response[0] if isinstance(response, tuple) else response for response in responses]
    return str(record["arguments"][likelihoods.index(max(likelihoods))][-1]).strip()
