"""What a decoder returns: the answer, how it came about, and honest counters."""

from dataclasses import dataclass, field


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
    smallest_gap: float = float("inf")  # logit gap between the best and second best token over all revealed positions

    @property
    def target_forwards(self) -> int:
        """Forwards of the target that produced decoding logits: the denominator of tokens per forward."""
        return self.counters["target_forwards"]
