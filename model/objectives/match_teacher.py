"""Layer-subset distillation: 0.7 x divergence from the teacher + 0.3 x cross-entropy, on hidden positions only.

The published card writes KL(student || teacher) (`reverse`); KL(teacher || student) (`forward`) is the usual choice.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional

from model.network.transformer import Transformer
from model.objectives.objective import Head, Objective, Terms, View
from model.text.batch import Batch

DIRECTIONS = ("forward", "reverse")


@dataclass(frozen=True, eq=False)
class MatchTeacher:
    """The base hides tokens; the frozen teacher reads the same view and is asked at the hidden positions only."""

    base: Objective
    teacher: Transformer
    teacher_share: float = 0.7
    direction: str = "forward"

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise ValueError(
                f"the direction of the divergence '{self.direction}' must be one of {', '.join(DIRECTIONS)}"
            )
        if not 0.0 <= self.teacher_share <= 1.0:
            raise ValueError(f"teacher_share {self.teacher_share} must lie in [0, 1]")
        self.teacher.eval().requires_grad_(False)

    @property
    def weights(self) -> dict[str, float]:
        """teacher_share x divergence + the rest x cross-entropy; agreement of first guesses is only measured."""
        return {"teacher": self.teacher_share, "truth": 1.0 - self.teacher_share, "agreement": 0.0}

    def corrupt(self, batch: Batch, rng: torch.Generator) -> View:
        """What the base reads."""
        return self.base.corrupt(batch, rng)

    def score(self, hidden, head: Head, view: View) -> Terms:
        """Divergence and cross-entropy summed over hidden positions, unweighted (as published: a plain mean)."""
        student_logits = head(hidden).float()
        teacher_logits = self._teacher_logits(view)
        student, teacher = functional.log_softmax(student_logits, -1), functional.log_softmax(teacher_logits, -1)
        first, second = (teacher, student) if self.direction == "forward" else (student, teacher)
        divergence = (first.exp() * (first - second)).sum()
        truth = functional.nll_loss(student, view.targets, reduction="sum")
        agree = (student_logits.detach().argmax(-1) == teacher_logits.argmax(-1)).sum().float()
        count = torch.tensor(float(view.targets.numel()), device=hidden.device)
        return {"teacher": (divergence, count), "truth": (truth, count), "agreement": (agree, count)}

    @torch.no_grad()
    def _teacher_logits(self, view: View) -> torch.Tensor:
        states = self.teacher(view.tokens, view.positions, view.pattern, view.embedding_noise, view.graded)
        return self.teacher.head(states).float()

    def counts(self, view: View) -> dict[str, torch.Tensor]:
        """All terms count hidden positions."""
        count = torch.tensor(float(view.targets.numel()))
        return {"teacher": count, "truth": count, "agreement": count}
