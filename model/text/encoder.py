"""Encodes large amounts of text: each different word goes through the tokenizer once, the rest is table look-up.

Measured on English with a vocabulary of 6,400: see bench/tokenize.py.
"""

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from model.text.tokenizer import Encoded, encode_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# White space is Unicode's White_Space, as the Rust side has it; Python's \s also counts the separators 1C-1F.
_SPACE, _VISIBLE = r"[^\S\x1c-\x1f]", r"[\S\x1c-\x1f]"

# Byte-level BPE in the manner of GPT-2 never joins letters, numbers and punctuation. So a run of one kind, with the white
# space before it, is encoded by itself; where the next character might still belong to the run, everything up to the next
# white space is one word.
_FINE_WORD = re.compile(
    rf"""{_SPACE}*(?:
      [A-Za-z]++(?=[\x00-\x7f]|\Z)
    | [0-9]++(?=[\x00-\x7f]|\Z)
    | [!-&(-/:-@\[-`{{-~]++(?=[A-Za-z0-9]|{_SPACE}|\Z)          # not the apostrophe: 's, 't, 're ... are pieces
    | [\u4e00-\u9fff]++(?=[\x00-@\[-`{{-\x7f\uff0c\u3002\u3001\uff01\uff1f\uff1a\uff1b]|\Z)
    | [\uff0c\u3002\u3001\uff01\uff1f\uff1a\uff1b]++(?=[A-Za-z0-9\u4e00-\u9fff]|{_SPACE}|\Z)
    | {_VISIBLE}+
    ) | {_SPACE}+""",
    re.VERBOSE,
)
# Its heirs (Llama 3, Qwen ...) do join some of them, but all start a new piece at a plain space after something visible.
_COARSE_WORD = re.compile(rf"{_SPACE}*{_VISIBLE}+(?:(?! ){_SPACE}+(?:{_VISIBLE}+|\Z))*|{_SPACE}+")
KNOWN_CHARACTERS = 4_000_000  # the table is emptied when its words exceed this: memory stays flat
TRIAL_CHARACTERS = 200_000


class TextEncoder:
    """`encode_texts` with a memory: the same ids, looked up for tokenizers whose words are independent of each other."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        self.tokenizer = tokenizer
        self._word = _word_pattern(tokenizer)
        self._by_word: bool | None = None if self._word else False
        self._forget()

    def __call__(self, texts: Sequence[str]) -> Encoded:
        """(ids of all texts end to end, tokens of each)."""
        if self._by_word is None:
            self._by_word = self._trial(texts)
        return self._encode_words(texts) if self._by_word else encode_texts(self.tokenizer, texts)

    def _forget(self) -> None:
        self._known: dict[str, int] = {}
        self._characters = 0
        self._ids, self._begins, self._sizes = np.zeros(0, np.uint32), np.zeros(0, np.int64), np.zeros(0, np.int64)

    def _trial(self, texts: Sequence[str]) -> bool:
        """Whether both ways agree on the first texts."""
        sample, characters = [], 0
        for text in texts:
            sample.append(text)
            characters += len(text)
            if characters > TRIAL_CHARACTERS:
                break
        pairs = zip(encode_texts(self.tokenizer, sample), self._encode_words(sample), strict=True)
        return all(np.array_equal(plain, by_word) for plain, by_word in pairs)

    def _encode_words(self, texts: Sequence[str]) -> Encoded:
        words: list[str] = []
        ends = np.empty(len(texts), np.int64)
        for index, text in enumerate(texts):
            words += self._word.findall(text)
            ends[index] = len(words)
        self._learn(words)
        places = np.fromiter(map(self._known.__getitem__, words), np.int64, len(words))
        sizes = self._sizes[places]
        after = np.cumsum(sizes)
        ids = self._ids[
            np.repeat(self._begins[places] - (after - sizes), sizes) + np.arange(after[-1] if len(after) else 0)
        ]
        return ids, np.diff(np.concatenate([[0], after])[ends], prepend=0)

    def _learn(self, words: list[str]) -> None:
        if self._characters > KNOWN_CHARACTERS:
            self._forget()
        new = list(set(words).difference(self._known))  # in any order: where a word stands in the table does not show
        if not new:
            return
        ids, sizes = encode_texts(self.tokenizer, new)
        begins = len(self._ids) + np.cumsum(sizes) - sizes
        self._known.update(zip(new, range(len(self._known), len(self._known) + len(new)), strict=True))
        self._ids = np.concatenate([self._ids, ids])
        self._begins, self._sizes = np.concatenate([self._begins, begins]), np.concatenate([self._sizes, sizes])
        self._characters += sum(map(len, new))


def _word_pattern(tokenizer: "PreTrainedTokenizerFast") -> re.Pattern[str] | None:
    """What can be encoded by itself; None where nothing can.

    It takes byte-level BPE that draws nothing at random, changes no characters and has no ordinary added token with white
    space in it.
    """
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    pieces = parts["pre_tokenizer"] or {}
    steps = pieces.get("pretokenizers", [pieces])
    added = [token for token in parts["added_tokens"] if not token["special"]]
    independent = (
        parts["model"]["type"] == "BPE"
        and not parts["model"].get("dropout")
        and (parts["normalizer"] or {"type": "NFC"})["type"] == "NFC"
        and any(step.get("type") == "ByteLevel" for step in steps)
        and not any(step.get("add_prefix_space") for step in steps)
        and not any(token["lstrip"] or token["rstrip"] or re.search(r"\s", token["content"]) for token in added)
    )
    if not independent:
        return None
    in_gpt2_manner = (
        not added
        and parts["normalizer"] is None
        and all(step["type"] == "Digits" or (step["type"] == "ByteLevel" and step["use_regex"]) for step in steps)
    )
    return _FINE_WORD if in_gpt2_manner else _COARSE_WORD
