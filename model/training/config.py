"""What a training stage's section of params.yaml says about the loop; the method has its own part."""

from dataclasses import dataclass, fields
from typing import Any

PRECISIONS = ("float32", "bfloat16")
EXPERT_BIASES = ("frozen", "balanced")


@dataclass(frozen=True)
class TrainingConfig:
    """Steps, batch, optimizer and how often things happen. `batch_rows` is per optimizer step over all processes."""

    steps: int
    batch_rows: int
    learning_rate: float
    optimizer: str = "adamw"
    schedule: str = "cosine"
    warmup_steps: int = 50
    minimum_learning_rate_fraction: float = 0.05
    weight_decay: float = 0.05
    gradient_clip: float = 1.0
    accumulation_steps: int = 1
    precision: str = "float32"
    compile: bool = False  # layers through torch.compile: pays in bfloat16, in runs of more than some minutes
    expert_bias: str = "frozen"  # of a mixture of experts; balanced: moved towards an even load after every step
    expert_bias_step: float = 0.001  # by this much (arXiv:2408.15664)
    validate_every_steps: int = 500
    validation_rows: int = 256
    patience: int | None = None  # evaluations without improvement before the run ends; None: never
    minimum_improvement: float = 0.0  # in bits per byte
    merge_best: int = 0  # the mean of the weights of that many best evaluations is published; 0: the last weights are
    checkpoint_every_steps: int = 250
    log_every_steps: int = 20

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_rows",
            "accumulation_steps",
            "validate_every_steps",
            "checkpoint_every_steps",
            "log_every_steps",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")
        if self.merge_best < 0 or self.merge_best == 1:
            raise ValueError(f"merge_best {self.merge_best} must be 0 (off) or at least 2: a mean of one is that one")
        if self.merge_best > self.steps // self.validate_every_steps + 1:
            raise ValueError(
                f"merge_best {self.merge_best} weights cannot come from steps {self.steps} evaluated every "
                f"validate_every_steps {self.validate_every_steps}: lower one of them"
            )
        if self.batch_rows % self.accumulation_steps:
            raise ValueError(
                f"batch_rows {self.batch_rows} must be a multiple of accumulation_steps {self.accumulation_steps}"
            )
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision '{self.precision}' must be one of {', '.join(PRECISIONS)}")
        if not isinstance(self.compile, bool):
            raise ValueError(f"compile {self.compile!r} must be true or false")
        if self.expert_bias not in EXPERT_BIASES:
            raise ValueError(f"expert_bias '{self.expert_bias}' must be one of {', '.join(EXPERT_BIASES)}")
        if self.expert_bias_step <= 0:
            raise ValueError(f"expert_bias_step {self.expert_bias_step} must be positive")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate {self.learning_rate} must be positive")

    @classmethod
    def from_section(cls, section: dict[str, Any], method_keys: tuple[str, ...] = ()) -> "TrainingConfig":
        """The configuration of one section; keys outside it and outside the method's own are refused by name."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(section) - known - set(method_keys))
        if unknown:
            raise ValueError(
                f"unknown key(s) {', '.join(unknown)}; known: {', '.join(sorted(known | set(method_keys)))}"
            )
        return cls(**{key: value for key, value in section.items() if key in known})
