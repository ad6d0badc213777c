"""Judges the challengers in the registry against the champions, and promotes those that pass: python -m tasks.promote

Both versions come from the registry, not from data/, and answer the same questions at the same operating points. The settings are
section `retrain` of params.yaml; what was decided and why goes to the version's tags, to mlruns/promotions.jsonl and to MLflow.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.training.tracking import files_of, open_store
from tasks.parameters import load_params
from tasks.promotion import champions, decisions
from tasks.promotion.champions import CHALLENGER, CHAMPION, Version
from tasks.promotion.program import run_program
from tasks.promotion.settings import SECTION, TARGETS, RetrainOptions, check_choice
from tasks.stage import open_session

if TYPE_CHECKING:
    from tasks.promotion.rules import Decision, Facts
    from tasks.stage import Stage

JUDGED_SECTIONS = ("seed", "evaluate", "speculate", SECTION)


def promote(root: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One log entry per judged model; [] when no challenger waits. ValueError where there is nothing to judge or to force."""
    options = RetrainOptions.from_section(load_params(root / "params.yaml").get(SECTION) or {})
    client, _ = open_store(root)
    check_choice(arguments.model, arguments.version, arguments.force)
    champions.follow(client)
    chosen = [arguments.model] if arguments.model else options.models
    if arguments.waiting:
        waiting = [name for name in chosen if champions.is_pending(client, name)]
        print(
            "promote: " + (f"not judged yet: {', '.join(waiting)}" if waiting else "every challenger has been judged")
        )
        return [{"model": name} for name in waiting]
    return [entry for name in chosen if (entry := _one(root, client, name, arguments, options)) is not None]


def _one(
    root: Path, client: Any, name: str, arguments: argparse.Namespace, options: RetrainOptions
) -> dict[str, Any] | None:
    """Judges one model's challenger (or the version asked for) and moves the alias when it may, or when a person insists."""
    named = champions.aliases(client, name)
    number, before = arguments.version or named.get(CHALLENGER), named.get(CHAMPION)
    if not before or not number:
        raise ValueError(
            f"{name} has no {CHALLENGER if before else CHAMPION} in the registry: `make run` registers models"
        )
    if number == before:
        print(f"promote: {name} version {number} is the champion already")
        return None
    challenger = champions.version_of(client, name, number)
    if arguments.force:
        reasons = (f"a person insisted: {arguments.force}",)
        entry = champions.promote(client, root, challenger, before, {"reasons": list(reasons), "forced": True})
        champions.record(client, challenger, decisions.PROMOTED, before, reasons)
        print(f"promote: {challenger.title} is the champion now, by force; it was version {before}")
        return entry
    champion = champions.version_of(client, name, before)
    decision = judge(root, client, champion, challenger, options)
    entry = {"reasons": list(decision.reasons), "numbers": decision.numbers}
    if decision.is_promoted:
        entry = champions.promote(client, root, challenger, before, entry)
        champions.record(client, challenger, decisions.PROMOTED, before, ())
        print(f"promote: {challenger.title} is the champion now; it was version {before}", flush=True)
        return entry
    champions.record(client, challenger, decisions.REFUSED, before, decision.reasons)
    print(f"promote: {challenger.title} is refused, version {before} stays the champion:", flush=True)
    print("\n".join(f"  - {reason}" for reason in decision.reasons), flush=True)
    refusal = {"action": decisions.REFUSED, "model": name, "from": before, "to": number}
    return decisions.append(root, {**entry, **refusal})


def judge(root: Path, client: Any, champion: Version, challenger: Version, options: RetrainOptions) -> "Decision":
    """Measures both versions and applies the rules; what a killed judgement has decoded is taken up again."""
    from model.apps.registered import checkpoint_of_version
    from model.benchmarks.judge import open_judge
    from tasks.promotion import measure
    from tasks.promotion.rules import decide

    with open_session(SECTION, root, _key(root, champion, challenger)) as stage, open_judge() as answer_judge:
        stage.tracker.set_tags({"unmask.champion": champion.title, "unmask.challenger": challenger.title})
        folders = {each.number: checkpoint_of_version(root, each.name, each.number) for each in (champion, challenger)}
        facts = gather_facts(stage, client, challenger, folders[challenger.number])
        measured = {champion.number: {}, challenger.number: {}}
        if not facts.not_finite:  # such a model cannot be decoded
            for number, folder in folders.items():
                measured[number] = measure.measure_points(stage, folder, f"{champion.name}-{number}", answer_judge)
        decision = decide(measured[champion.number], measured[challenger.number], facts, options, stage.seed)
        metrics = {
            f"promotion/{point.replace('=', '_')}/{name}": value
            for point, row in decision.numbers.items()
            for name, value in row.items()
            if value is not None
        }
        stage.tracker.log_metrics(metrics)
        stage.tracker.set_tags({"unmask.decision": "promoted" if decision.is_promoted else "refused"})
    return decision


def _key(root: Path, champion: Version, challenger: Version) -> str:
    params = load_params(root / "params.yaml")
    manifest = root / "data/raw/manifest.json"
    facts = [
        [[each.name, each.number, each.tags.get("unmask.checkpoint")] for each in (champion, challenger)],
        {name: params.get(name) for name in JUDGED_SECTIONS},
        hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else "",
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def gather_facts(stage: "Stage", client: Any, challenger: Version, folder: Path) -> "Facts":
    """What is on record about the challenger's data, and what its weights and its draft show."""
    from model.apps.registered import checkpoint_of_version
    from tasks.promotion import measure
    from tasks.promotion.rules import Facts

    unknown, speculation = [], []
    profile = read_profile(client, challenger)
    if profile is None:
        unknown.append(f"{challenger.title} does not say on which data it was trained: train and register it again")
    broken = measure.not_finite(folder)
    draft = challenger.tags.get(champions.DRAFT_TAG)
    if not draft:
        unknown.append(f"{challenger.title} names no draft: train and register it again")
    elif not broken:
        draft_folder = checkpoint_of_version(stage.root, champions.DRAFT, draft)
        broken += [f"the draft's {name}" for name in measure.not_finite(draft_folder)]
        if not broken:
            speculation = measure.speculation_problems(stage, folder, draft_folder)
    corpora = (profile or {}).get("corpora", {})
    return Facts(
        refused={title: corpus["refused_fraction"] for title, corpus in corpora.items()},
        licenses={title: corpus["license"] for title, corpus in corpora.items()},
        validation_passed=profile is None or profile["passed"],
        speculation=speculation,
        not_finite=broken,
        unknown=unknown,
    )


def read_profile(client: Any, version: Version) -> dict[str, Any] | None:
    """The profile of the data under a version; None where it has none, or its files are gone."""
    from tasks.promotion.data_profile import FILE

    run = version.tags.get("unmask.data_profile")
    if FILE not in files_of(client, run):
        return None
    with tempfile.TemporaryDirectory() as folder:
        return json.loads(Path(client.download_artifacts(run, FILE, folder)).read_text(encoding="utf-8"))


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=TARGETS, help="only this one; otherwise all that retrain.models names")
    parser.add_argument("--version", help="judge this version of --model instead of its challenger")
    parser.add_argument("--force", metavar="REASON", help="promote without judging; the reason goes on record")
    parser.add_argument("--waiting", action="store_true", help="only say which challengers have not been judged yet")


def main() -> int:
    """0 also when a challenger is refused: a refusal is an answer, no failure."""
    return run_program("promote", __doc__, promote, _arguments)


if __name__ == "__main__":
    sys.exit(main())
