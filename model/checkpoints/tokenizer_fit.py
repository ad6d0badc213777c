"""Whether the tokenizer in a folder belongs to the network beside it: every id has a row, and both mean the same mask token."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.network.config import NetworkConfig

_MASK_NAMES = ("<|mask|>", "<|mdm_mask|>")  # of tokenizers that name no mask_token


def fitted(config: NetworkConfig, folder: Path) -> NetworkConfig:
    """The configuration, with the tokenizer's mask token where it names none; ValueError when the two do not fit.

    Only a network that fills masked positions gets one: in an autoregressive one the token is just a word.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        return config
    ids = _ids(_json(path))
    if ids and max(ids.values()) >= config.embedding_rows:
        token = max(ids, key=ids.__getitem__)
        raise ValueError(
            f"{path} has the token {token!r} with id {ids[token]}, but the network's embedding has {config.embedding_rows} rows: "
            "this is another model's tokenizer, or a token was added to it and no row to the network"
        )
    settings = folder / "tokenizer_config.json"
    mask = _mask(ids, _json(settings) if settings.exists() else {})
    if mask is None or config.mask_token_id == mask:
        return config
    if config.mask_token_id is None:
        return config if config.attention == "causal" else replace(config, mask_token_id=mask)
    raise ValueError(
        f"{folder}: config.json says mask_token_id {config.mask_token_id}, and the tokenizer's mask token has id {mask}: "
        "correct the one that is wrong"
    )


def _ids(tokenizer: dict[str, Any]) -> dict[str, int]:
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, list):  # unigram: pairs of piece and score, in the order of their ids
        vocabulary = {pair[0]: index for index, pair in enumerate(vocabulary)}
    return {**vocabulary, **{token["content"]: token["id"] for token in tokenizer.get("added_tokens") or []}}


def _mask(ids: dict[str, int], settings: dict[str, Any]) -> int | None:
    named = settings.get("mask_token")
    named = named.get("content") if isinstance(named, dict) else named
    return next((ids[name] for name in (named, *_MASK_NAMES) if name in ids), None)


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): copy or download it again") from error
