"""Whether guessing pays here: how often guesses were right, as the speculate stage recorded it, against what they cost here.

The cost of a step with guesses, and of a draft's forward, is measured when a model is loaded, for one live row and for more.
While serving, the depth follows the acceptance of the traffic itself, and is 0 where so many rows are live that guessing costs
more than it saves.
"""

import json
from collections.abc import Mapping
from typing import Any

from model.checkpoints.store import Checkpoint
from model.samplers.adaptive_depth import AdaptiveDepth
from model.samplers.guesses import Guesser
from tasks.guessing import draft_price, make_guesser
from tasks.register import SPECULATION_TAG
from tasks.speculation_costs import Costs, measure_costs

LEAST_GAIN = 1.05
DEPTHS = (1, 2, 4)
WEIGHT = 50.0  # guesses that the recorded acceptance counts for, against those of the traffic


def recorded_matches(tags: Mapping[str, str], policy: dict[str, Any]) -> dict[str, float]:
    """Source of guesses -> share of right ones under the policy, from a version's tags; empty where nothing was recorded."""
    rows = json.loads(tags.get(SPECULATION_TAG, "[]"))
    return {row["source"]: row["match_probability"] for row in rows if row["policy"] == policy}


def choose_guesser(
    target: Checkpoint, draft: Checkpoint | None, matches: Mapping[str, float], prompt: list[int], batch_rows: int
) -> tuple[Guesser | None, dict[str, Any]]:
    """The guesser that promises most for one live row, or None, and why: for the log and /health."""
    usable = {source: match for source, match in matches.items() if source == "stale" or draft}
    if not usable:
        return None, {"used": False, "why": "no acceptance is recorded for this model under the policy that is served"}
    counts = sorted({1, *(count for count in (4, 16, 64) if count < batch_rows), batch_rows})
    network = (draft or target).network
    costs = {count: measure_costs(target.network, network, [prompt] * count, DEPTHS) for count in counts}
    gains = {source: costs[1].recommend(source, match, max(DEPTHS)) for source, match in usable.items()}
    source = max(gains, key=lambda name: gains[name][1])
    by_rows = {count: _pair(costs[count], source) for count in counts}
    depth = AdaptiveDepth(max(DEPTHS), by_rows=by_rows, free_guesses=draft_price(source, 1.0)[1])
    depth.record(WEIGHT, WEIGHT * usable[source])
    promised = {str(count): round(depth.speed_up(depth.best(count), count), 3) for count in counts}
    report = {
        "used": gains[source][1] >= LEAST_GAIN,
        "why": f"predicted speed-up for one row {gains[source][1]:.2f}, at least {LEAST_GAIN} is asked",
        "source": source,
        "recorded_match_probability": usable[source],
        "measured_draft_and_row_cost": {str(count): pair for count, pair in by_rows.items()},
        "predicted_speed_up_by_rows": promised,
    }
    if not report["used"]:
        return None, report
    return make_guesser(source, depth, target, draft), report


def _pair(costs: Costs, source: str) -> tuple[float, float]:
    """Costs of a guess: its draft's forward and its place in the target's."""
    return (round(draft_price(source, costs.draft)[0], 4), round(costs.row_cost, 4))
