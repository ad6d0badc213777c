"""Conversations in, answers out: what the registered models, the chat and later the server call."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from model.checkpoints.store import Checkpoint, load_checkpoint
from model.samplers.decode import make_decoder
from model.samplers.guesses import Guesser
from model.samplers.results import Decoded
from model.samplers.sampling import GREEDY, Sampling
from model.text.tokenizer import CHAT_TEMPLATE, ROLES, encode_conversation, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DEFAULT_POLICY = {"name": "threshold", "threshold": 0.9}
Turns = Sequence[dict[str, str]]  # role and content, the last one the user's
Answerer = Callable[[list[Turns]], list[str]]


class Assistant:
    """A checkpoint that answers conversations under one decoding policy, plainly or speculatively."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        policy: dict[str, Any] | None = None,
        guesser: Guesser | None = None,
        sampling: Sampling = GREEDY,
    ) -> None:
        self.checkpoint, self.tokenizer = checkpoint, load_tokenizer(str(checkpoint.folder))
        self._decode = make_decoder(checkpoint.network, policy or DEFAULT_POLICY, guesser=guesser, sampling=sampling)

    @property
    def is_causal(self) -> bool:
        """Whether it writes from left to right, whatever the policy."""
        return self.checkpoint.config.attention == "causal"

    def prompt(self, turns: Turns) -> list[int]:
        """The conversation as tokens, up to where the answer begins."""
        return encode_prompt(self.tokenizer, turns)

    def room(self, prompt: list[int]) -> int:
        """Tokens that an answer to `prompt` may have, in whole blocks of the context; below 1: there is no room."""
        return self._decode.room(self.checkpoint.config.maximum_positions, prompt)

    def answer(self, prompts: list[list[int]], max_new_tokens: int, **options: Any) -> list[Decoded]:
        """One decoded answer per prompt; `options` (an observer) go to the decoder."""
        return self._decode(prompts, max_new_tokens, **options)

    def text(self, tokens: list[int]) -> str:
        """What a person reads of an answer's tokens."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True).strip()


def best_device() -> str:
    """The GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def encode_prompt(tokenizer: "PreTrainedTokenizerFast", turns: Turns) -> list[int]:
    """Ids of the turns and of what opens the assistant's next one. Special-token strings that people typed stay ordinary text
    under this project's template; another template is applied as its tokenizer does it."""
    if tokenizer.chat_template != CHAT_TEMPLATE:
        return tokenizer.apply_chat_template(list(turns), add_generation_prompt=True, tokenize=True, return_dict=False)
    ids, _ = encode_conversation(tokenizer, list(turns))
    return [*ids.tolist(), tokenizer.convert_tokens_to_ids(ROLES["assistant"])]


def load_answerer(folder: Path, policy: dict[str, Any] | None = None, max_new_tokens: int = 128) -> Answerer:
    """A function from conversations to the assistant's next turns."""
    assistant = Assistant(load_checkpoint(Path(folder), best_device()), policy)

    def answer(conversations: list[Turns]) -> list[str]:
        prompts = [assistant.prompt(turns) for turns in conversations]
        room = min(map(assistant.room, prompts))
        decoded = assistant.answer(prompts, max(1, min(max_new_tokens, room)))
        return [assistant.text(one.tokens) for one in decoded]

    return answer
