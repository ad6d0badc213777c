"""Who answers: `MODEL@POLICY+GUESSES`, each part optional, as people write it on the command line.

MODEL is a checkpoint folder, a name under data/models, or `registered` (the champion in the registry). POLICY is a policy's name
with its settings: `one_token`, `threshold=0.9`, `hybrid,threshold=0.95,steps=8`. GUESSES make decoding speculative: `stale` (the
model's own last logits), `draft` (data/models/distill_draft) or `both`, with a depth: `draft:4`, or `draft:auto`, which follows
the measured acceptance.
"""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from model.apps.answer import DEFAULT_POLICY, Assistant, best_device
from model.apps.registered import registered_checkpoint
from model.checkpoints.store import Checkpoint, load_checkpoint
from model.registry import names, resolve
from model.samplers.decode import COUNTED
from model.samplers.sampling import GREEDY, Sampling
from tasks.guessing import DRAFT, SOURCES, adaptive_depth, make_guesser

MODELS = Path("data/models")
FINE_TUNED, REGISTERED, REGISTERED_NAME, ALIAS = "finetune_diffusion", "registered", "unmask-target", "champion"
DEPTH, AUTO, DEEPEST = 4, "auto", 8


@dataclass(frozen=True)
class Voice:
    """A name to show, and what answers under it."""

    title: str
    assistant: Assistant


@dataclass(frozen=True)
class Description:
    """What was written, taken apart. `model` None: the default; `policy` None: the default policy."""

    model: str | None
    policy: dict[str, Any] | None
    source: str | None
    depth: int | str = DEPTH  # or AUTO


def describe(text: str) -> Description:
    """The parts of `MODEL@POLICY+GUESSES`; a text without @ that starts with a policy's name is a policy."""
    if is_checkpoint(text):
        return Description(text, None, None)
    rest, plus, guesses = text.rpartition("+")
    source, depth = parse_guesses(guesses, text) if plus else (None, DEPTH)
    rest = rest if plus else text
    model, at, policy = rest.rpartition("@")
    if not at and is_policy(rest):
        policy = rest
    elif not at:
        model, policy = rest, ""
    return Description(model or None, parse_policy(policy) if policy else None, source, depth)


def policy_names() -> list[str]:
    """Every policy that can be named, sorted."""
    return sorted({*names("policy"), *COUNTED})


def is_policy(text: str) -> bool:
    """Whether the text begins with a policy's name."""
    return text.partition(",")[0].partition("=")[0] in policy_names()


def is_checkpoint(text: str) -> bool:
    """Whether the text names a checkpoint folder, as a path or under data/models."""
    return any((folder / "config.json").is_file() for folder in (Path(text), MODELS / text))


def parse_policy(text: str) -> dict[str, Any]:
    """`hybrid,threshold=0.95,steps=8` as the decoder wants it; `threshold=0.9` sets the policy's only or first setting."""
    head, *rest = text.split(",")
    name, equals, value = head.partition("=")
    if name not in policy_names():
        raise ValueError(f"there is no policy {name!r}; there are {', '.join(policy_names())}")
    known = COUNTED.get(name) if name in COUNTED else tuple(inspect.signature(resolve("policy", name)).parameters)
    assert known is not None
    pairs = [part.partition("=")[::2] for part in rest]
    if equals:
        pairs.insert(0, (known[0] if known else "", value))
    settings = {}
    for key, written in pairs:
        if key not in known:
            has = f"has {' and '.join(known)}" if known else "has no settings"
            raise ValueError(f"policy {name} {has}; {text!r} sets {key or value!r}")
        settings[key] = yaml.safe_load(written)
        if not isinstance(settings[key], int | float):
            raise ValueError(f"policy {name}: {key} is {written!r}; it must be a number")
    return {"name": name} | settings


def parse_guesses(text: str, whole: str) -> tuple[str, int | str]:
    """`draft:4` as source and depth."""
    source, _, depth = text.partition(":")
    if source not in SOURCES:
        raise ValueError(f"guesses {source!r} in {whole!r} must be one of {', '.join(SOURCES)}")
    if depth == AUTO:
        return source, AUTO
    if depth and not depth.isdecimal():
        raise ValueError(f"the depth {depth!r} in {whole!r} must be a whole number of at least 1, or {AUTO}")
    return source, int(depth) if depth else DEPTH


def folder_of(model: str | None) -> Path:
    """The checkpoint folder that a name means; ValueError that lists what there is."""
    if model == REGISTERED:
        return registered_checkpoint(Path.cwd(), REGISTERED_NAME, ALIAS)
    if model is None:
        if is_checkpoint(FINE_TUNED):
            return MODELS / FINE_TUNED
        return registered_checkpoint(Path.cwd(), REGISTERED_NAME, ALIAS)
    if is_checkpoint(model):
        return Path(model) if (Path(model) / "config.json").is_file() else MODELS / model
    there = sorted(path.parent.name for path in MODELS.glob("*/config.json"))
    listed = ", ".join(there) or "there are none: `make run` trains them"
    raise ValueError(
        f"{model!r} is no checkpoint folder, no model under {MODELS} ({listed}) and no policy ({', '.join(policy_names())})"
    )


def open_voices(texts: list[str], sampling: Sampling = GREEDY, precision: str = "float32") -> list[Voice]:
    """The voices that were asked for, each checkpoint loaded once."""
    loaded: dict[Path, Checkpoint] = {}

    def load(folder: Path) -> Checkpoint:
        return loaded.get(folder) or loaded.setdefault(
            folder, load_checkpoint(folder, best_device(), getattr(torch, precision))
        )

    voices = []
    for text in texts:
        wanted = describe(text)
        target = load(folder_of(wanted.model))
        guesser = None
        if wanted.source and target.config.attention == "causal":
            raise ValueError(f"{text!r}: a causal model writes from left to right, so there is nothing to guess for it")
        if wanted.source:
            draft = None if wanted.source == "stale" else load(folder_of(DRAFT))
            depth = adaptive_depth(wanted.source, DEEPEST) if wanted.depth == AUTO else wanted.depth
            guesser = make_guesser(wanted.source, depth, target, draft)
        assistant = Assistant(target, wanted.policy, guesser, sampling)
        voices.append(Voice(title(target.folder.name, wanted, assistant.is_causal), assistant))
    return voices


def title(model: str, wanted: Description, is_causal: bool) -> str:
    """`tune_cap, threshold 0.9, draft depth 4`."""
    if is_causal:
        return f"{model}, left to right"
    policy = wanted.policy or DEFAULT_POLICY
    words = [model, " ".join(str(value) for value in policy.values()).replace("_", " ")]
    return ", ".join(words + ([f"{wanted.source} depth {wanted.depth}"] if wanted.source else []))
