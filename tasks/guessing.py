"""Sources of guesses by name, for the speculate stage and the chat, and the stage's settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model.checkpoints.store import Checkpoint
from model.samplers.guesses import BothGuesser, DraftGuesser, Guesser, StaleGuesser
from tasks.parameters import check_keys

SOURCES = ("draft", "stale", "both")
DRAFT = "distill_draft"  # the stage whose checkpoint drafts


@dataclass(frozen=True)
class SpeculateConfig:
    """Section `speculate`. `width`: candidates per level; above 1 they are nested prefixes of the draft's confidence order."""

    policies: dict[str, dict[str, Any]]
    sources: tuple[str, ...]
    depths: tuple[int, ...]
    prompts_per_benchmark: int
    max_new_tokens: int
    batch_rows: int
    width: int = 1
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

    @classmethod
    def from_section(cls, section: Mapping[str, Any]) -> "SpeculateConfig":
        """The configuration of a params section (`threads` is the stage's business)."""
        check_keys(
            "speculate", section, set(cls.__dataclass_fields__) - {"width", "start_from"}, ("width", "start_from")
        )
        values = {name: value for name, value in section.items() if name != "threads"}
        return cls(**values | {name: tuple(values[name] or ()) for name in ("sources", "depths")})


def make_guesser(source: str, depth: int, target: Checkpoint, draft: Checkpoint | None, width: int = 1) -> Guesser:
    """The named source: the draft network, the target's own last logits, or those first and then the draft.

    ValueError for an unknown name, a depth or width below 1, and a draft that does not fit the target.
    """
    if source not in SOURCES:
        raise ValueError(f"guesses come from {', '.join(SOURCES)}; there is no source {source!r}")
    if source == "stale":
        return StaleGuesser(depth, width)
    if draft is None:
        raise ValueError(f"guesses of source {source!r} need a draft checkpoint (stage {DRAFT})")
    kind = DraftGuesser if source == "draft" else BothGuesser
    return kind(draft.network, target.network, depth, width)
