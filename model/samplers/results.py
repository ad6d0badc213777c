"""What a decoder returns and reports: the answer, how it came about, and honest counters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

EXACT = "exact"


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

    `revealed_at[i]` is the number of decoding forwards this row had had when token i was last written (1 = the first one);
    `confidence[i]` the probability of the token at that moment. `counters`, all of them per row:

    - target_forwards: forwards of the target that produced decoding logits for this row, whatever its candidates;
    - prefill_forwards: forwards that only read the prompt; commit_forwards: that only stored a finished block (always 0: its
      keys and values ride along with the next block's first forward); wasted_forwards: target_forwards that wrote nothing;
    - draft_forwards; steps (policy steps taken: the target forwards that plain decoding would have made);
    - rows_verified: candidate blocks in target forwards; target_tokens, draft_tokens: tokens that went through each network;
    - tried_D, matched_D: steps whose outcome had been guessed at depth D, and those where the guess was right.
    """

    tokens: list[int]
    revealed_at: list[int]
    confidence: list[float]
    counters: dict[str, int] = field(default_factory=dict)
    cancelled: bool = False  # an observer ended decoding before this answer was finished
    smallest_gap: float = float("inf")  # logit gap between the best and second best token over all written positions
    smallest_margin: float = float(
        "inf"
    )  # confidence gap between what a step revealed and what it left hidden, or to a threshold
    cache: str = (
        EXACT  # or "prefix (approximate)", "dual (approximate)": a bidirectional network's cached values go stale
    )
    seconds: dict[str, float] = field(
        default_factory=dict, compare=False
    )  # this row's share, by part: target, draft, host

    @property
    def target_forwards(self) -> int:
        """Forwards of the target that produced decoding logits: the denominator of tokens per forward."""
        return self.counters["target_forwards"]

    @property
    def tokens_per_forward(self) -> float:
        """Tokens up to and including the first EOS per decoding forward (methods section 4)."""
        return len(self.tokens) / max(self.target_forwards, 1)

    @property
    def acceptance(self) -> dict[int, float]:
        """Share of right guesses by depth."""
        depths = sorted(int(name.removeprefix("tried_")) for name in self.counters if name.startswith("tried_"))
        tried = {depth: self.counters[f"tried_{depth}"] for depth in depths}
        return {depth: self.counters[f"matched_{depth}"] / count for depth, count in tried.items() if count}


def flop_speed_up(plain: Sequence[Decoded], found: Sequence[Decoded], draft_share: float = 0.0) -> float:
    """How many times fewer floating-point operations `found` took than `plain`, the same target's plain decode.

    Counted in tokens through the networks; `draft_share` = operations of a token in the draft / in the target. Guesses add
    tokens, so speculation is at most 1 here: what it saves is forwards, where reading the weights costs more than computing.
    """
    before = sum(answer.counters["target_tokens"] for answer in plain)
    after = sum(a.counters["target_tokens"] + draft_share * a.counters["draft_tokens"] for a in found)
    return before / after
