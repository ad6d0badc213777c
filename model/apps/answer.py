"""Conversations in, answers out: what the registered models, the command line and later the server call."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from model.checkpoints.store import load_checkpoint
from model.samplers.decode import make_decoder
from model.text.tokenizer import load_tokenizer

DEFAULT_POLICY = {"name": "threshold", "threshold": 0.9}
Answerer = Callable[[list[list[dict[str, str]]]], list[str]]


def load_answerer(folder: Path, policy: dict[str, Any] | None = None, max_new_tokens: int = 128) -> Answerer:
    """A function from conversations (turns of role and content, the last one the user's) to the assistant's next turns."""
    checkpoint = load_checkpoint(Path(folder))
    tokenizer = load_tokenizer(str(folder))
    decode = make_decoder(checkpoint.network, policy or DEFAULT_POLICY)

    def answer(conversations: list[list[dict[str, str]]]) -> list[str]:
        prompts = [
            tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
            for turns in conversations
        ]
        room = checkpoint.config.maximum_positions - max(map(len, prompts))
        decoded = decode(prompts, max(1, min(max_new_tokens, room)))
        return [tokenizer.decode(one.tokens, skip_special_tokens=True).strip() for one in decoded]

    return answer
