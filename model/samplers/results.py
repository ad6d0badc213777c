"""What a decoder returns: the answer, how it came about, and honest counters."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Step:
    """What one decoding step did to one answer: told to an observer as it happens.

    `positions` are absolute (prompt counted from 0); `tokens`, `confidence` and `edited` run beside them. `forward` is the
    number of the answer's decoding forward (1 = the first); several steps share one when guesses were right. `drafted`: this
    step's outcome had been guessed; `accepted`: the guess was right.
    """

    row: int  # which prompt
    forward: int
    positions: list[int]
    tokens: list[int]
    confidence: list[float]
    edited: list[bool]  # a shown token was replaced (token editing), rather than a hidden one revealed
    drafted: bool = False
    accepted: bool = False


Observer = Callable[[Step], bool | None]
"""Called after every step of every row. A true return value ends decoding: answers come back as far as they were written
without a gap, marked `cancelled`. An exception passes through; the decoder can be called again."""


@dataclass
class Decoded:
    """One answer. `tokens` ends with the first EOS in position order, if there is one.

    `revealed_at[i]` is the number of decoding forwards this row had had when token i was written (1 = the first one);
    `confidence[i]` the probability of the token at that moment.
    `counters`: target_forwards (those that produced decoding logits for this row), prefill_forwards, commit_forwards,
    draft_forwards, rows_verified (candidate blocks in target forwards), guesses_tried / guesses_matched by depth
    (`tried_1`, `matched_1`, ...).
    """

    tokens: list[int]
    revealed_at: list[int]
    confidence: list[float]
    counters: dict[str, int] = field(default_factory=dict)
    cancelled: bool = False  # an observer ended decoding before this answer was finished
    smallest_gap: float = float("inf")  # logit gap between the best and second best token over all revealed positions

    @property
    def target_forwards(self) -> int:
        """Forwards of the target that produced decoding logits: the denominator of tokens per forward."""
        return self.counters["target_forwards"]
