"""Sources of guesses by name, for the speculate stage and the chat, and the stage's settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from model.checkpoints.store import Checkpoint
from model.samplers.adaptive_depth import AdaptiveDepth
from model.samplers.guesses import BothGuesser, DraftGuesser, Guesser, StaleGuesser
from model.text.tokenizer import load_tokenizer
from tasks.parameters import check_keys

SOURCES = ("draft", "stale", "both")
DRAFT = "distill_draft"  # the stage whose checkpoint drafts


@dataclass(frozen=True)
class SpeculateConfig:
    """Section `speculate`. `width`: candidates per level; above 1 they are nested prefixes of the draft's confidence order.

    `adaptive_depth`, where given, is tried beside the fixed depths, up to the largest of them: what a draft forward and one more
    candidate cost, as shares of a target forward ({draft_cost: 0.5, row_cost: 0.1}; from an earlier run's costs file).
    """

    policies: dict[str, dict[str, Any]]
    sources: tuple[str, ...]
    depths: tuple[int, ...]
    prompts_per_benchmark: int
    max_new_tokens: int
    batch_rows: int
    width: int = 1
    adaptive_depth: Mapping[str, float] | None = None
    start_from: Mapping[str, str] | None = (
        None  # model -> folder or hub id of any family, instead of data/models/<model>
    )

    def __post_init__(self) -> None:
        for name in ("prompts_per_benchmark", "max_new_tokens", "batch_rows", "width"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"speculate.{name} is {value!r}; it must be a whole number of at least 1")
        for name in ("policies", "sources", "depths"):
            if not getattr(self, name):
                raise ValueError(f"speculate.{name} is empty; name at least one")
        if unknown := sorted(set(self.sources) - set(SOURCES)):
            raise ValueError(f"speculate.sources holds {unknown[0]!r}; it may hold {', '.join(SOURCES)}")
        if any(not isinstance(depth, int) or depth < 1 for depth in self.depths):
            raise ValueError(f"speculate.depths is {list(self.depths)}; each depth must be at least 1")

        for name, value in (self.adaptive_depth or {}).items():
            if name not in ("draft_cost", "row_cost") or not isinstance(value, int | float) or value < 0:
                raise ValueError(
                    f"speculate.adaptive_depth has {name}: {value!r}; it may hold draft_cost and row_cost, numbers from 0 on"
                )

    def depth(self, source: str, depth: int, adaptive: bool) -> int | AdaptiveDepth:
        """What a guesser of `source` is given: the depth, or one that adapts up to it and has seen nothing yet."""
        return adaptive_depth(source, depth, **self.adaptive_depth or {}) if adaptive else depth

    @classmethod
    def from_section(cls, section: Mapping[str, Any]) -> "SpeculateConfig":
        """The configuration of a params section (`threads` is the stage's business)."""
        optional = ("width", "adaptive_depth", "start_from")
        check_keys("speculate", section, set(cls.__dataclass_fields__) - set(optional), optional)
        values = {name: value for name, value in section.items() if name != "threads"}
        return cls(**values | {name: tuple(values[name] or ()) for name in ("sources", "depths")})


def draft_price(source: str, draft_cost: float) -> tuple[float, int]:
    """What a guess of the source costs in draft forwards, and how many of a chain's guesses are free: the target's own last
    logits cost none, and `both` takes its first guess from them."""
    return (0.0 if source == "stale" else draft_cost, int(source == "both"))


def adaptive_depth(source: str, maximum: int, draft_cost: float = 0.5, row_cost: float = 0.1) -> AdaptiveDepth:
    """A depth that follows the measured acceptance."""
    price, free_guesses = draft_price(source, draft_cost)
    return AdaptiveDepth(maximum, price, row_cost, free_guesses=free_guesses)


def make_guesser(
    source: str, depth: int | AdaptiveDepth, target: Checkpoint, draft: Checkpoint | None, width: int = 1
) -> Guesser:
    """The named source: the draft network, the target's own last logits, or those first and then the draft.

    ValueError for an unknown name, a depth or width below 1, and a draft that does not fit the target.
    """
    if source not in SOURCES:
        raise ValueError(f"guesses come from {', '.join(SOURCES)}; there is no source {source!r}")
    if source == "stale":
        return StaleGuesser(depth, width)
    if draft is None:
        raise ValueError(f"guesses of source {source!r} need a draft checkpoint (stage {DRAFT})")
    check_same_tokenizer(draft.folder, target.folder)
    kind = DraftGuesser if source == "draft" else BothGuesser
    return kind(draft.network, target.network, depth, width)


def check_same_tokenizer(draft: Path, target: Path) -> None:
    """ValueError unless every token id means the same text to both: a draft reads the target's ids."""
    ours, theirs = vocabulary(draft), vocabulary(target)
    if ours == theirs:
        return
    token = min(token for token, text in {**ours, **theirs}.items() if ours.get(token) != theirs.get(token))
    raise ValueError(
        f"draft {draft} and target {target} have different tokenizers: token {token} is {ours.get(token)!r} to the one and "
        f"{theirs.get(token)!r} to the other; the draft must be distilled from this target"
    )


@cache
def vocabulary(folder: Path) -> dict[int, str]:
    """Id -> token of a checkpoint's tokenizer; a folder of weights is never changed in place."""
    return {token: text for text, token in load_tokenizer(folder).get_vocab().items()}
