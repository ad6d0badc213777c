"""A tokenizer of our own (byte-level BPE) or any Hugging Face one, saved and loaded the Hugging Face way."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model.text.foreign_template import encode_foreign

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Encoded = tuple[np.ndarray, np.ndarray]  # ids of several texts end to end, tokens of each

EOS, PAD, MASK = "<|endoftext|>", "<|pad|>", "<|mask|>"
ROLES = {"user": "<|user|>", "assistant": "<|assistant|>", "system": "<|system|>"}
SPECIAL_TOKENS = [EOS, PAD, *ROLES.values()]
SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS) + 1  # every byte, the special tokens, at least one merge

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "<|assistant|>{% generation %}{{ message['content'] }}<|endoftext|>{% endgeneration %}"
    "{% elif message['role'] in ['user', 'system'] %}"
    "{{ '<|' + message['role'] + '|>' }}{{ message['content'] }}"
    "{% else %}{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer(texts: Iterator[str], vocabulary_size: int, folder: Path) -> "PreTrainedTokenizerFast":
    """A byte-level BPE tokenizer learnt from `texts`, saved in `folder`: the same texts give the same bytes.

    Digits stand alone, the first of a number with the space before it: what is next to a number is then next to its token.
    Every byte has a token (nothing is ever unknown). ValueError below SMALLEST_VOCABULARY.
    """
    if vocabulary_size < SMALLEST_VOCABULARY:
        raise ValueError(
            f"tokenize.vocabulary_size is {vocabulary_size}; it must be at least {SMALLEST_VOCABULARY} "
            f"(256 bytes, {len(SPECIAL_TOKENS)} special tokens and one merge)"
        )
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r" ?\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    learner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=learner,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=list(ROLES.values()),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    save_tokenizer(tokenizer, folder)
    return load_tokenizer(folder)


def load_tokenizer(source: Path | str) -> "PreTrainedTokenizerFast":
    """The tokenizer of a local folder or else of a Hugging Face id; code that comes with it is never run."""
    from transformers import AutoTokenizer, PretrainedConfig

    folder = Path(source)
    # A folder that names its tokenizer's class is not asked for its model's, which transformers may never have heard of.
    known = {"config": PretrainedConfig()} if (folder / "tokenizer_config.json").exists() else {}
    if folder.exists() and not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise ValueError(f"{source} holds no tokenizer: tokenizer.json is missing")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False, **known)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"tokenizer {source!s} cannot be loaded: {error}. Give `train`, a folder with tokenizer.json, or a Hugging Face id "
            "(which needs the network once)"
        ) from error
    if not tokenizer.is_fast:
        raise ValueError(
            f"tokenizer {source!s} has no tokenizer.json (the fast format); convert it with transformers first"
        )
    if tokenizer.eos_token_id is None:
        raise ValueError(f"tokenizer {source!s} names no eos_token; set one in its tokenizer_config.json")
    return tokenizer


def save_tokenizer(tokenizer: "PreTrainedTokenizerFast", folder: Path) -> None:
    """Writes the tokenizer's files into `folder`, each complete or not at all; other files there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".tokenizer-{os.getpid()}"
    tokenizer.save_pretrained(str(temporary), save_jinja_files=False)
    for path in sorted(temporary.iterdir()):
        os.replace(path, folder / path.name)
    shutil.rmtree(temporary)


def pad_id(tokenizer: "PreTrainedTokenizerFast") -> int:
    """The id that fills unused places: the pad token's, or EOS's where there is none (nothing reads it there)."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def add_mask_token(tokenizer: "PreTrainedTokenizerFast", folder: Path) -> int:
    """The id of the mask token, appended to the vocabulary if there was none; the tokenizer is saved in `folder`."""
    if tokenizer.mask_token_id is None:
        from tokenizers import AddedToken

        tokenizer.add_special_tokens({"mask_token": AddedToken(MASK, special=True, normalized=False)})
    save_tokenizer(tokenizer, folder)
    return tokenizer.mask_token_id


def encode_texts(tokenizer: "PreTrainedTokenizerFast", texts: Sequence[str]) -> Encoded:
    """(ids of all texts end to end, tokens of each), nothing added; special-token strings in a text stay ordinary text.

    The Rust tokenizer does the work on all its threads (RAYON_NUM_THREADS).
    """
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    before, backend.encode_special_tokens = backend.encode_special_tokens, True
    try:
        ids = [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
    finally:
        backend.encode_special_tokens = before
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    return np.fromiter(chain.from_iterable(ids), np.uint32, int(lengths.sum())), lengths


def encode_conversation(
    tokenizer: "PreTrainedTokenizerFast", conversation: list[dict[str, str]]
) -> tuple[np.ndarray, np.ndarray]:
    """(ids, graded) of one conversation in the tokenizer's own chat format; graded: the assistant's words and what closes them.

    Special-token strings that people typed stay text. Equals `apply_chat_template` where nobody typed one.
    """
    ids, _, graded = encode_conversations(tokenizer, [conversation], partial(encode_texts, tokenizer))
    return ids, graded


def encode_conversations(
    tokenizer: "PreTrainedTokenizerFast",
    conversations: Sequence[list[dict[str, str]]],
    encode: Callable[[Sequence[str]], Encoded],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids of all end to end, tokens of each, graded): `encode_conversation` for many at once; `encode` reads plain text."""
    if tokenizer.chat_template != CHAT_TEMPLATE:
        pairs = [encode_foreign(tokenizer, conversation) for conversation in conversations]
        lengths = np.array([len(ids) for ids, _ in pairs], np.int64)
        return (
            np.fromiter(chain.from_iterable(ids for ids, _ in pairs), np.uint32),
            lengths,
            np.fromiter(chain.from_iterable(graded for _, graded in pairs), bool),
        )
    role_ids = {role: tokenizer.convert_tokens_to_ids(token) for role, token in ROLES.items()}
    messages = list(chain.from_iterable(conversations))
    contents, words = encode([message["content"] for message in messages])
    roles = np.array([role_ids[message["role"]] for message in messages], np.uint32)
    answers = roles == role_ids["assistant"]
    sizes = 1 + words + answers  # role, words, and EOS after an answer
    begins = np.cumsum(sizes) - sizes
    ids = np.full(sizes.sum(), tokenizer.eos_token_id, np.uint32)
    ids[begins] = roles
    ids[np.arange(len(contents)) + np.repeat(begins + 1 - (np.cumsum(words) - words), words)] = contents
    graded = np.repeat(answers, sizes)
    graded[begins] = False
    turns = np.array([len(conversation) for conversation in conversations], np.int64)
    ends = np.concatenate([[0], np.cumsum(sizes)])[np.cumsum(turns)]
    return ids, np.diff(ends, prepend=0), graded
