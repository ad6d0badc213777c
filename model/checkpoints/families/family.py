"""A family: what a public network's config.json and tensor names say in ours, both ways.

A family is one file beside this one and one line in model/registry.py; nothing else knows its names.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from model.network.config import NetworkConfig

REQUIRED = object()
ABSENT = object()
DTYPE = object()  # written as the name of the weights' dtype
OURS = "unmask"  # the key under which an export keeps what the family's own keys cannot say
# What other libraries write into any config.json and what says nothing about the network.
GENERIC_KEYS = frozenset((
    "_name_or_path", "_attn_implementation", "_attn_implementation_autoset", "architectures", "auto_map",
    "chunk_size_feed_forward", "dtype", "id2label", "is_encoder_decoder", "label2id", "model_type", "output_attentions",
    "output_hidden_states", "problem_type", "return_dict", "task_specific_params", "torch_dtype", "torchscript",
    "transformers_version", "use_cache",
))  # fmt: skip
# May differ from what the family's keys say without any other tensor: they are kept under `unmask` and read back from there.
FREE_FIELDS = (
    "attention", "block_tokens", "mask_token_id", "bos_token_id", "eos_token_id", "pad_token_id", "norm",
    "rotary_full_precision", "vocabulary_size", "embedding_size",
)  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """Some keys of a config.json: `read` turns the whole dictionary into fields of ours, `write` fields of ours into keys."""

    theirs: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], dict[str, Any]]
    write: Callable[[NetworkConfig], dict[str, Any]]
    ours: str | None = None


def same(
    theirs: str,
    ours: str,
    default: Any = REQUIRED,
    read: Callable[[Any], Any] = lambda value: value,
    write: Callable[[NetworkConfig], Any] | None = None,
) -> Rule:
    """A key that is one field of ours; `default` is what the family's own code takes when it is absent."""

    def reading(values: Mapping[str, Any]) -> dict[str, Any]:
        value = values.get(theirs, default)
        if value is REQUIRED:
            raise ValueError(f"it has no {theirs}")
        return {ours: None if value is None else read(value)}

    writing = write or (lambda config: getattr(config, ours))
    return Rule((theirs,), reading, lambda config: {theirs: writing(config)}, ours)


def when_set(theirs: str, ours: str) -> Rule:
    """A key that is one field of ours and is left out when there is nothing to say."""
    plain = same(theirs, ours, None)
    return replace(plain, write=lambda config: {} if getattr(config, ours) is None else plain.write(config))


def fixed(theirs: str, value: Any, *also: Any) -> Rule:
    """A key that this project's network can have with one meaning only; ValueError for any other."""

    def reading(values: Mapping[str, Any]) -> dict[str, Any]:
        found = values.get(theirs, value)
        if found != value and found not in also:
            raise ValueError(f"{theirs} is {found!r}: only {value!r} is supported")
        return {}

    return Rule((theirs,), reading, lambda config: {theirs: value})


def only_read(rule: Rule) -> Rule:
    """The rule for keys that are understood and that an export leaves out."""
    return replace(rule, write=lambda config: {})


def ignored(theirs: str, value: Any = ABSENT) -> Rule:
    """A key that says nothing about the network; `value` is what an export writes."""
    return Rule((theirs,), lambda values: {}, lambda config: {} if value is ABSENT else {theirs: value})


@dataclass(frozen=True)
class Family:
    """The names and choices of one public family.

    `tensors` maps our names, with {layer} and {part} (weight or bias), to theirs; several of theirs are rows of ours, one below
    another, and with {expert} ours is the stack over experts. `always` are the fields of ours that the family has no key for.
    """

    name: str
    model_type: str
    rules: tuple[Rule, ...]
    tensors: Mapping[str, str | tuple[str, ...]]
    always: Mapping[str, Any] = field(default_factory=dict)
    derived_tensors: str = r"(?!)"  # pattern of stored tensors that follow from the configuration
    stores_tied_head: bool = False
    recognises: Callable[[Mapping[str, Any]], bool] = lambda values: True

    def read_config(self, values: Mapping[str, Any]) -> NetworkConfig:
        """Our configuration of a config.json; ValueError that names every unknown key, or the one that does not fit."""
        known = {key for rule in self.rules for key in rule.theirs} | GENERIC_KEYS | {OURS}
        if unknown := sorted(set(values) - known):
            raise ValueError(
                f"unknown key(s) for a {self.name} network: {', '.join(unknown)}. Delete them if they say nothing about the "
                "network; otherwise this is a variant that cannot be read"
            )
        kept = values.get(OURS) or {}
        if foreign := sorted(set(kept) - set(FREE_FIELDS)):
            raise ValueError(f"unknown key(s) under '{OURS}': {', '.join(foreign)}; known: {', '.join(FREE_FIELDS)}")
        fields = dict(self.always)
        for rule in self.rules:
            fields |= rule.read(values)
        try:
            return NetworkConfig.from_dict({**fields, **kept})
        except ValueError as error:
            raise ValueError(self._in_their_words(str(error))) from error

    def write_config(self, config: NetworkConfig, dtype: str) -> dict[str, Any]:
        """The family's config.json; ValueError that names every field of ours it cannot say."""
        values: dict[str, Any] = {"model_type": self.model_type}
        for rule in self.rules:
            values |= rule.write(config)
        values = {key: dtype if value is DTYPE else value for key, value in values.items()}
        try:
            said = _plain(self.read_config(values))
        except ValueError as error:
            raise ValueError(f"this network cannot be written as {self.name}: {error}") from error
        wanted = _plain(config)
        lost = {name: wanted[name] for name in wanted if wanted[name] != said[name]}
        if impossible := sorted(name for name in lost if not _is_free(name, wanted, said)):
            raise ValueError(
                f"this network cannot be written as {self.name}: "
                + "; ".join(f"{name} would be {said[name]!r} instead of {wanted[name]!r}" for name in impossible)
            )
        return values | ({OURS: lost} if lost else {})

    def _in_their_words(self, message: str) -> str:
        for rule in self.rules:
            if rule.ours:
                message = re.sub(rf"network\.{rule.ours}\b", rule.theirs[0], message)
        return message


def _plain(config: NetworkConfig) -> dict[str, Any]:
    """All fields, with what None stands for written out, so that equal networks compare equal."""
    return asdict(config) | {
        "head_size": config.width_per_head,
        "num_key_value_heads": config.key_value_heads,
        "embedding_size": config.embedding_rows,
    }


def _is_free(name: str, wanted: Mapping[str, Any], said: Mapping[str, Any]) -> bool:
    if name == "norm":  # a rounding apart in narrow dtypes; with or without weights are different networks
        return "rms_unweighted" not in (wanted[name], said[name])
    if name == "embedding_size":
        return False
    return name in FREE_FIELDS
