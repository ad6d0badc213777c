"""Measures how far the validated data lie from the data the champion was trained on: python -m tasks.drift

Lengths, vocabulary, scripts, duplicates per corpus, and bits per byte of held-out rows, old and new, under the champion. The
limits are `alarm_*` in section `retrain` of params.yaml; a distance beyond one raises an alarm and stops nothing. Writes
data/reports/drift.json.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from model.atomic import write_json
from model.training.tracking import open_store
from tasks.parameters import load_params
from tasks.promote import read_profile
from tasks.promotion import champions
from tasks.promotion.data_profile import profile_of
from tasks.promotion.drift_measures import alarms, measure_drift
from tasks.promotion.program import run_program
from tasks.promotion.settings import SECTION, RetrainOptions

REPORT = Path("data/reports/drift.json")


def drift(root: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """{champion, rows, alarms}; without a champion or without its data on record there are no rows, and a note says why."""
    params = load_params(root / "params.yaml")
    options = RetrainOptions.from_section(params.get(SECTION) or {})
    client, _ = open_store(root)
    name = options.models[0]
    champion = champions.aliases(client, name).get(champions.CHAMPION)
    version = champions.version_of(client, name, champion) if champion else None
    old = read_profile(client, version) if version else None
    if version is None or old is None:
        note = f"{name} has no champion yet" if version is None else f"{version.title} has no data on record"
        return _publish(
            root, {"champion": champion, "rows": [], "alarms": [], "note": f"nothing to compare with: {note}"}
        )
    new = profile_of(root, float((params.get("tokenize") or {}).get("validation_fraction", 0.02)))
    rows = measure_drift(old, new)
    _add_bits_per_byte(root, name, version.number, old, new, rows, int(params.get("seed", 0)))
    return _publish(root, {"champion": version.number, "rows": rows, "alarms": alarms(rows, options), "note": ""})


def _add_bits_per_byte(
    root: Path, name: str, number: str, old: dict[str, Any], new: dict[str, Any], rows: list[dict[str, Any]], seed: int
) -> None:
    """Adds the bits per byte of both sides' held-out rows under the champion, and by which fraction they rose."""
    from model.apps.registered import checkpoint_of_version
    from tasks.promotion.measure import bits_per_byte

    folder = checkpoint_of_version(root, name, number)
    for row in rows:
        corpus = new["corpora"][row["corpus"]]
        before = old["corpora"].get(row["corpus"])
        earlier = [before] if before else [each for each in old["corpora"].values() if each["kind"] == corpus["kind"]]
        then = bits_per_byte(folder, [one for each in earlier for one in each["held_out"]], seed)
        now = bits_per_byte(folder, corpus["held_out"], seed)
        row |= {"bits_per_byte_before": then, "bits_per_byte_now": now}
        if then and now:
            row["bits_per_byte"] = now / then - 1


def _publish(root: Path, found: dict[str, Any]) -> dict[str, Any]:
    write_json(root / REPORT, found)
    for row in found["rows"]:
        values = (f"{name} {value:.4f}" for name, value in row.items() if isinstance(value, float))
        print(f"drift: {row['corpus']}: {', '.join(values)}", flush=True)
    for sentence in found["alarms"] or [found["note"] or "no alarm"]:
        print(f"drift: {'ALARM: ' if found['alarms'] else ''}{sentence}", flush=True)
    return found


def _arguments(parser: argparse.ArgumentParser) -> None:
    """It has none of its own."""


def main() -> int:
    """0 also with alarms: they are told, and stop nothing."""
    return run_program("drift", __doc__, drift, _arguments)


if __name__ == "__main__":
    sys.exit(main())
