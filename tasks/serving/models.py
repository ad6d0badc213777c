"""The model that is served: which one, loaded with its engine, and another one in its place when the alias moves."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from model.apps.answer import best_device, encode_prompt
from model.apps.engine import Engine
from model.apps.registered import registered_version
from model.checkpoints.store import load_checkpoint
from model.samplers.adaptive_depth import AdaptiveDepth
from model.samplers.decode import make_decoder
from model.samplers.guesses import ChainGuesser
from model.text.tokenizer import load_tokenizer
from tasks.promotion.champions import DRAFT, DRAFT_TAG
from tasks.serving.settings import ServeConfig
from tasks.serving.speculation import choose_guesser, recorded_matches

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MODELS = Path("data/models")
FOLDER = "folder"  # the version of a model that comes from no registry


@dataclass(frozen=True)
class Source:
    """Where a model is, before it is loaded; two sources are equal when they would serve the same."""

    name: str
    version: str
    folder: Path
    draft_version: str = ""
    draft_folder: Path | None = None
    tags: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def label(self) -> str:
        """What answers say about who gave them."""
        return f"{self.name}/{self.version}"


@dataclass(frozen=True)
class Served:
    """A loaded model that answers."""

    source: Source
    tokenizer: "PreTrainedTokenizerFast"
    engine: Engine
    speculation: dict[str, Any]

    def prompt(self, turns: list[dict[str, str]]) -> list[int]:
        """A conversation as tokens, up to where the answer begins."""
        return encode_prompt(self.tokenizer, turns)

    def room(self, prompt: list[int]) -> int:
        """Tokens that an answer may have; below 1: none."""
        return self.engine.decoder.room(self.engine.capacity, prompt)

    def text(self, tokens: list[int]) -> str:
        """What a person reads of an answer's tokens."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def guessing(self) -> dict[str, Any]:
        """The decision about speculation, with what the traffic has shown since."""
        guesser = self.engine.decoder.guesser
        if not isinstance(guesser, ChainGuesser) or not isinstance(guesser.depth, AdaptiveDepth):
            return self.speculation
        depth, rows = guesser.depth, max(self.engine.num_live, 1)
        return self.speculation | {"match_probability": round(depth.acceptance, 4), "depth_now": depth.best(rows)}


def find_source(root: Path, model: str) -> Source:
    """What `serve.model` means: NAME@ALIAS or NAME/VERSION of the registry, a folder, or a name under data/models."""
    for folder in (Path(model), MODELS / model):
        if (root / folder / "config.json").is_file():
            return Source(folder.name, FOLDER, root / folder)
    name, at, alias = model.partition("@")
    name, slash, version = (name, "", "") if at else model.rpartition("/")
    if not (at or slash) or not name or not (alias or version):
        raise ValueError(
            f"serve.model is {model!r}: neither a checkpoint folder, nor a name under {MODELS}, nor NAME@ALIAS or NAME/VERSION "
            "of the registry (unmask-target@champion)"
        )
    found = registered_version(root, name, alias=alias, version=version)
    draft_version = found.tags.get(DRAFT_TAG, "")
    draft = registered_version(root, DRAFT, version=draft_version).folder if draft_version else None
    return Source(name, found.version, found.folder, draft_version, draft, found.tags)


def load(source: Source, config: ServeConfig) -> Served:
    """The model with its draft on the best device, its decoder's thread started. ValueError for what cannot be served."""
    device, dtype = best_device(), getattr(torch, config.precision)
    target = load_checkpoint(source.folder, device, dtype)
    tokenizer = load_tokenizer(str(source.folder))
    guesser, speculation = None, {"used": False, "why": "serve.speculation is off"}
    if target.config.attention == "causal":
        speculation["why"] = (
            "the model is causal: it writes a token per forward, and no later state of a block can be guessed"
        )
    elif config.speculation != "off":
        draft = load_checkpoint(source.draft_folder, device, dtype) if source.draft_folder else None
        matches = recorded_matches(source.tags, config.policy)
        prompt = encode_prompt(tokenizer, [{"role": "user", "content": "How are you?"}])
        guesser, speculation = choose_guesser(target, draft, matches, prompt, config.batch_rows)
    decoder = make_decoder(target.network, config.policy, config.batch_rows, guesser=guesser)
    context = min(config.context_tokens or target.config.maximum_positions, target.config.maximum_positions)
    block = decoder.block_tokens
    if context < 2 * block:
        raise ValueError(f"serve.context_tokens is {context}; with blocks of {block} it must be at least {2 * block}")
    return Served(source, tokenizer, Engine(decoder, context // block * block, config.queue_requests), speculation)
