"""Token editing (LLaDA 2.1): besides revealing hidden tokens, shown tokens of the answer are replaced by surer ones."""

from dataclasses import dataclass

from torch import Tensor

from model.samplers.policies import BlockView, check_threshold, sure_or_most_confident, surer_than


@dataclass(frozen=True)
class TokenEditing:
    """Hidden positions: all above `threshold` when at least `least_tokens`, else that many most confident. Shown ones of this
    block and not of the prompt: replaced when another token's probability exceeds `edit_threshold`. Both from the same forward.

    A full block gets up to `refining_steps` more forwards, and is done after one of them that edits nothing (max_post_steps in
    the public code; without the bound, edits can go in circles).
    """

    threshold: float
    edit_threshold: float
    least_tokens: int = 1
    refining_steps: int = 16
    edits = True
    needs_entropy = False
    reads_confidence = True

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        check_threshold(self.edit_threshold, "edit_threshold")
        if self.least_tokens < 1:
            raise ValueError(f"least_tokens {self.least_tokens} must be at least 1: a step must reveal something")
        if self.refining_steps < 0:
            raise ValueError(f"refining_steps {self.refining_steps} must not be negative")

    def choose(self, view: BlockView) -> Tensor:
        """Positions to reveal and positions to replace."""
        assert view.differs is not None
        due = view.step.new_full(view.step.shape, self.least_tokens)
        reveal = sure_or_most_confident(self.threshold, due, view)
        return reveal | (view.differs & surer_than(self.edit_threshold, view.doubt))

    def finished(self, was_full, is_full, edited, full_steps) -> Tensor:
        """Nothing hidden before the step and nothing edited in it, or no refining step left."""
        return (was_full & ~edited) | (is_full & (full_steps >= self.refining_steps))
