"""What changes while a stage trains: block size (LLaDA 2.0) and hidden share (Nano-LLaDA), in three phases. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from model.hiding import SHARES, HidingConfig

PHASES = (0.3, 0.4, 0.3)
PLAIN = ("attention_within", "variable_length", "repeat_penalty", "z_loss")  # switches that are one value


def phase(step: int, steps: int, phases: tuple[float, ...]) -> tuple[int, float]:
    """(0 warm-up, 1 stable, 2 decay; how much of it has passed, in [0, 1)) at a step counted from 0."""
    done, begin = step / steps, 0.0
    for index, share in enumerate(phases):
        if done < begin + share or index == len(phases) - 1:
            return index, min(max((done - begin) / share, 0.0), 1.0) if share else 0.0
        begin += share
    raise AssertionError(phases)


def checked_phases(phases: Any, where: str) -> tuple[float, float, float]:
    """Three shares of the steps that add up to 1."""
    values = tuple(phases) if isinstance(phases, list | tuple) else ()
    if len(values) != 3 or min(values) < 0 or abs(sum(values) - 1.0) > 1e-6:
        raise ValueError(
            f"{where}.phases {phases!r} must be three shares of the steps (warm-up, stable, decay) with sum 1"
        )
    return values


@dataclass(frozen=True)
class BlockCurriculum:
    """Block sizes going `up` evenly spread over the warm-up, the last of them while stable, `down` over the decay.

    A block as long as the row is plain masked diffusion: no earlier block, so no clean half is read.
    """

    up: tuple[int, ...]
    down: tuple[int, ...]
    phases: tuple[float, float, float] = PHASES

    def __post_init__(self) -> None:
        for name in ("up", "down"):
            sizes = getattr(self, name)
            if not isinstance(sizes, list | tuple) or not sizes or not all(isinstance(s, int) and s > 0 for s in sizes):
                raise ValueError(f"block_curriculum.{name} {sizes!r} must be a list of block sizes in tokens")
            object.__setattr__(self, name, tuple(sizes))
        object.__setattr__(self, "phases", checked_phases(self.phases, "block_curriculum"))

    def check(self, row_tokens: int, block_tokens: int) -> None:
        """ValueError unless every size divides the row and the last one is the block the network decodes with."""
        wrong = [size for size in (*self.up, *self.down) if row_tokens % size]
        if wrong:
            raise ValueError(
                f"block_curriculum has the size(s) {', '.join(map(str, wrong))}, which do not divide tokenize.row_tokens "
                f"{row_tokens}: choose divisors of it, or another row_tokens"
            )
        if self.down[-1] != block_tokens:
            raise ValueError(
                f"block_curriculum.down ends with {self.down[-1]}, but the model decodes blocks of {block_tokens} "
                "(convert_to_diffusion.block_tokens): end with that size"
            )

    def block_tokens(self, step: int, steps: int) -> int:
        """The block size of a step."""
        which, passed = phase(step, steps, self.phases)
        if which == 1:
            return self.up[-1]
        sizes = self.up if which == 0 else self.down
        return sizes[min(int(passed * len(sizes)), len(sizes) - 1)]


@dataclass(frozen=True)
class RatioCurriculum:
    """The hidden share rises from `low` to `high` in the warm-up, stays, and falls back to `low` in the decay."""

    low: float = 0.15
    high: float = 1.0
    phases: tuple[float, float, float] = PHASES

    def __post_init__(self) -> None:
        if not 0.0 < self.low <= self.high <= 1.0:
            raise ValueError(f"ratio_curriculum needs 0 < low ({self.low}) <= high ({self.high}) <= 1")
        object.__setattr__(self, "phases", checked_phases(self.phases, "ratio_curriculum"))

    def share(self, step: int, steps: int) -> float:
        """The hidden share of a step."""
        which, passed = phase(step, steps, self.phases)
        return self.low + (self.high - self.low) * (passed, 1.0, 1.0 - passed)[which]


@dataclass(frozen=True)
class MaskNoise:
    """Gaussian noise of standard deviation `scale` on the embedding of masked positions during the first `steps`."""

    scale: float
    steps: int

    def __post_init__(self) -> None:
        if self.scale <= 0 or self.steps < 1:
            raise ValueError(f"mask_noise needs scale > 0 (got {self.scale}) and steps >= 1 (got {self.steps})")


@dataclass(frozen=True)
class Recipe:
    """The switches that every diffusion training section shares; None and 0 mean off."""

    hiding: HidingConfig
    block_curriculum: BlockCurriculum | None = None
    ratio_curriculum: RatioCurriculum | None = None
    mask_noise: MaskNoise | None = None
    attention_within: str = "document"  # or row: tokens see the other documents of their packed row
    variable_length: float = 0.0  # probability that a document is cut to a random length
    repeat_penalty: float = 0.0
    z_loss: float = 0.0

    def __post_init__(self) -> None:
        if self.attention_within not in ("document", "row"):
            raise ValueError(f"attention_within '{self.attention_within}' must be document or row")
        if not 0.0 <= self.variable_length <= 1.0:
            raise ValueError(f"variable_length {self.variable_length} is a probability: it must lie in [0, 1]")
        for name in ("repeat_penalty", "z_loss"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 0")
        if self.ratio_curriculum and self.hiding.draw not in SHARES:
            raise ValueError(
                f"ratio_curriculum sets the hidden share, and hiding.draw {self.hiding.draw} draws its own: set hiding.draw to "
                f"{' or '.join(SHARES)}, or leave ratio_curriculum out"
            )

    @classmethod
    def from_section(cls, section: Mapping[str, Any]) -> "Recipe":
        """The recipe of one section of params.yaml; ValueError that names the key."""
        values: dict[str, Any] = {"hiding": HidingConfig.from_section(section.get("hiding"))}
        for name, kind in (
            ("block_curriculum", BlockCurriculum),
            ("ratio_curriculum", RatioCurriculum),
            ("mask_noise", MaskNoise),
        ):
            if section.get(name) is not None:
                values[name] = _made(kind, name, section[name])
        values |= {name: section[name] for name in PLAIN if name in section}
        return cls(**values)

    def check(self, objective: str, row_tokens: int, block_tokens: int) -> None:
        """ValueError for switches that contradict the objective or the rows."""
        if self.block_curriculum:
            if objective != "block_diffusion":
                raise ValueError(f"block_curriculum needs objective block_diffusion, and it is {objective}")
            self.block_curriculum.check(row_tokens, block_tokens)


RECIPE_KEYS = tuple(field.name for field in fields(Recipe))


def _made(kind: type, name: str, values: Any) -> Any:
    known = {field.name for field in fields(kind)}
    if not isinstance(values, Mapping) or set(values) - known:
        raise ValueError(f"{name} is {values!r}: it must map {', '.join(sorted(known))} to values")
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from error
