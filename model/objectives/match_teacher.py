"""Layer-subset distillation: 0.7 x divergence from the teacher + 0.3 x cross-entropy, on hidden positions only.

The published card writes KL(student || teacher) (`reverse`); KL(teacher || student) (`forward`) is the usual choice.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from model.network.transformer import Transformer
from model.objectives.objective import Drawing, Head, Terms, View, Wrapped
from model.objectives.stored_answers import StoredAnswers
from model.text.batch import Batch

DIRECTIONS = ("forward", "reverse")


class Sides(NamedTuple):
    """Log-probabilities of both over the same classes, and the teacher's first guesses."""

    student: Float[Tensor, "graded classes"]
    teacher: Float[Tensor, "graded classes"]
    first: Int[Tensor, " graded"]


@dataclass(frozen=True, eq=False)
class Matching(Wrapped):
    """What both teachers share; the base hides tokens."""

    teacher: Transformer | StoredAnswers
    teacher_share: float = 0.7
    direction: str = "forward"

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise ValueError(
                f"the direction of the divergence '{self.direction}' must be one of {', '.join(DIRECTIONS)}"
            )
        if not 0.0 <= self.teacher_share <= 1.0:
            raise ValueError(f"teacher_share {self.teacher_share} must lie in [0, 1]")

    @property
    def weights(self) -> dict[str, float]:
        """teacher_share x divergence + the rest x cross-entropy; agreement of first guesses is only measured."""
        return {"teacher": self.teacher_share, "truth": 1.0 - self.teacher_share, "agreement": 0.0}

    def score(self, hidden, head: Head, view: View) -> Terms:
        """Divergence and cross-entropy summed over hidden positions, unweighted (as published: a plain mean)."""
        logits = head(hidden).float()
        log_p = functional.log_softmax(logits, -1)
        sides = self._sides(log_p, view)
        first, second = sides.teacher, sides.student
        if self.direction == "reverse":
            first, second = second, first
        divergence = (first.exp() * (first - second)).sum()
        truth = functional.nll_loss(log_p, view.targets, reduction="sum")
        agree = (logits.detach().argmax(-1) == sides.first).sum().float()
        count = torch.tensor(float(view.targets.numel()), device=hidden.device)
        return {"teacher": (divergence, count), "truth": (truth, count), "agreement": (agree, count)}

    def _sides(self, log_p: Float[Tensor, "graded vocabulary"], view: View) -> Sides:
        raise NotImplementedError

    def counts(self, view: View) -> dict[str, torch.Tensor]:
        """All terms count hidden positions."""
        count = torch.tensor(float(view.targets.numel()))
        return {"teacher": count, "truth": count, "agreement": count}


@dataclass(frozen=True, eq=False)
class MatchTeacher(Matching):
    """The frozen teacher reads the same view in every step and is asked at the hidden positions only."""

    teacher: Transformer

    def __post_init__(self) -> None:
        super().__post_init__()
        self.teacher.eval().requires_grad_(False)

    @torch.no_grad()
    def logits(self, view: View) -> Float[Tensor, "graded vocabulary"]:
        """The teacher's, in float32."""
        states = self.teacher(view.tokens, view.positions, view.pattern, view.embedding_noise, view.graded)
        return self.teacher.head(states).float()

    def _sides(self, log_p, view: View) -> Sides:
        logits = self.logits(view)
        return Sides(log_p, functional.log_softmax(logits, -1), logits.argmax(-1))


@dataclass(frozen=True)
class AnsweredView(View):
    """Also what the teacher said at every graded row."""

    answers: tuple[Int[Tensor, "graded top_k"], Float[Tensor, "graded classes"]] | None = None


@dataclass(frozen=True, eq=False)
class MatchStoredTeacher(Matching):
    """The teacher has answered before training began: its top k tokens, and one class for all others, on both sides."""

    base: Drawing
    teacher: StoredAnswers

    def corrupt(self, batch: Batch, rng: torch.Generator) -> View:
        """The view that the teacher read; nothing is drawn. Rows must know their numbers."""
        assert batch.samples is not None
        records = self.teacher.find(batch.samples)
        hidden, weights = self.teacher.masks(records, batch.tokens.shape[1])
        view = self.base.view(batch, hidden.to(batch.tokens.device), weights.to(batch.tokens.device))
        assert view.source is not None
        place = view.source.remainder(batch.tokens.numel())  # a complementary copy is a row of its own, or the same one
        answers = self.teacher.answers(records, place.argsort().argsort().cpu())
        return AnsweredView(**vars(view), answers=tuple(each.to(batch.tokens.device) for each in answers))

    def _sides(self, log_p, view: View) -> Sides:
        assert isinstance(view, AnsweredView) and view.answers is not None
        ids, teacher = view.answers
        return Sides(with_tail(log_p, ids), teacher, ids[:, 0])


def with_tail(log_p: Float[Tensor, "rows vocabulary"], ids: Int[Tensor, "rows top_k"]) -> Float[Tensor, "rows classes"]:
    """Log-probabilities of `ids` and, last, of all other tokens together; no such class where nothing is left."""
    picked = log_p.gather(1, ids)
    if ids.shape[1] == log_p.shape[1]:
        return picked
    return torch.cat((picked, log_p.scatter(1, ids, -torch.inf).logsumexp(-1, keepdim=True)), 1)
