"""What the finished ablation jobs say: python -m tasks.ablations. Writes docs/ablations.md with plots, and MLflow runs.

Every figure comes from the files that the jobs' stages left under .work/ablations. A difference to the control is paired: by seed
for a measure (Student's t over seeds), by question and seed for answers (bootstrap over both). A claim whose 95 % interval holds
zero is written `not resolved`.
"""

import argparse
import csv
import json
import math
import re
import statistics
import sys
from pathlib import Path
from typing import Any

from model.atomic import write_atomically
from model.training.tracking import open_store
from tasks.ablation_measures import by_seed, file_of, measured, place_of, right_at, score
from tasks.ablation_plan import ARMS, FOLDER, finished, read_plan, seeds_of
from tasks.environment import quiet

EXPERIMENT = "ablations"
PANELS_IN_A_ROW = 3


def main(arguments: list[str] | None = None) -> int:
    """0; 2 after one message when nothing has been run."""
    quiet()
    parser = argparse.ArgumentParser(
        prog="python -m tasks.ablations", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", type=Path, default=Path(ARMS), help="the plan that was run")
    parser.add_argument("--to", type=Path, default=Path("docs"), help="where ablations.md and ablations/ go")
    options = parser.parse_args(arguments)
    root = Path.cwd()
    plan = read_plan(root, options.arms)
    answers = {name: answer(root, plan, name) for name in plan["questions"]}
    if not any(arms for arms, _ in answers.values()):
        print("ablations: no job is finished yet: python -m flows.ablations", file=sys.stderr)
        return 2
    write_atomically(options.to / "ablations.md", page(root, plan, answers))
    for name, (_, measures) in answers.items():
        if measures:
            draw(options.to / "ablations" / f"{name}.svg", plan["questions"][name], measures)
    record(root, plan, answers)
    return 0


def answer(root: Path, plan: dict[str, Any], name: str) -> tuple[dict[str, list[int]], dict[str, dict[str, dict]]]:
    """(arm -> seeds that are finished, measure -> arm -> figures) of one question, over the seeds that arm and control share.

    `references`, models that the base has evaluated, stand among the measures' arms: the same figures for every seed.
    """
    question = plan["questions"][name]
    done = {arm: finished(root, name, arm, seeds_of(plan, name)) for arm in question["arms"]}
    done = {arm: folders for arm, folders in done.items() if folders}
    control, base = done.get(question["control"], {}), root / FOLDER / "base"
    rows = [(arm, folders, question.get("instance", "")) for arm, folders in done.items()]
    for title, instance in question.get("references", {}).items():
        if control and (base / f"data/metrics/evaluate/{instance}.json").is_file():
            rows.append((title, dict.fromkeys(control, base), instance))
    measures: dict[str, dict[str, dict]] = {}
    for arm, folders, instance in rows:
        is_control = arm == question["control"]
        for measure, place in question["measures"].items():
            if arm not in done and not (base / file_of(place_of(place, instance))).is_file():
                continue  # of a model that was not trained: there are no figures of its training
            values, reference = (
                measured(place_of(place, one), these, control)
                for these, one in ((folders, instance), (control, question.get("instance", "")))
            )
            if not values:  # compared with a control that has not run
                continue
            measures.setdefault(measure, {})[arm] = {
                "values": values,
                "mean": statistics.fmean(values.values()),
                "difference": None if is_control else by_seed(values, reference),
            }
        for measure, point in question.get("items", {}).items():
            right, reference = (
                {seed: right_at(folder, one, point) for seed, folder in these.items()}
                for these, one in ((folders, instance), (control, question["instance"]))
            )
            measures.setdefault(measure, {})[arm] = score(right, None if is_control else reference)
    return {arm: sorted(folders) for arm, folders in done.items()}, measures


def page(root: Path, plan: dict[str, Any], answers: dict[str, tuple]) -> str:
    """docs/ablations.md."""
    lines = [
        "# Ablations",
        "",
        f"Written by `python -m flows.ablations` from what its jobs measured: preset `{plan['preset']}`, seeds "
        f"{', '.join(map(str, plan['seeds']))} where a question has no others. Differences are to the control, paired by seed "
        "(Student's t) or, for scores, by seed and question (bootstrap), with 95 % intervals; one that holds zero is not "
        "resolved.",
    ]
    for name, question in plan["questions"].items():
        done, measures = answers[name]
        lines += ["", f"## {name}", "", question["asks"], ""]
        if not done:
            lines += ["Not run yet."]
            continue
        lines += [f"![{name}](ablations/{name}.svg)", "", "| arm | seeds | " + " | ".join(measures) + " |"]
        lines += ["|---" * (2 + len(measures)) + "|"]
        for arm in dict.fromkeys([*done, *(arm for arms in measures.values() for arm in arms)]):
            title = f"{arm} (control)" if arm == question["control"] else arm
            cells = [cell(arms[arm]) if arm in arms else "" for arms in measures.values()]
            lines += [f"| {title} | {len(done[arm]) if arm in done else '–'} | " + " | ".join(cells) + " |"]
        ended, wanted = sum(map(len, done.values())), len(seeds_of(plan, name)) * len(question["arms"])
        if ended < wanted:
            lines += [
                "",
                f"Not finished: {ended} of {wanted} jobs have ended; an arm with fewer seeds decides nothing.",
            ]
        lines += ["", question["found"].strip()] if "found" in question else []
        lines += ["", costs(root, plan, name, done)]
    return "\n".join(lines) + "\n"


def costs(root: Path, plan: dict[str, Any], name: str, done: dict[str, list[int]]) -> str:
    """How long arms took, and from whose models they started."""
    folders = [folder for arm in done for folder in finished(root, name, arm, seeds_of(plan, name)).values()]
    results = [json.loads((folder / "result.json").read_text()) for folder in folders]
    seconds = [one["seconds"] for one in results]
    started_from = {one.get("started_from") or f"preset {plan['preset']}" for one in results}
    took = f"An arm took {statistics.median(seconds):.0f} s (median), {max(seconds):.0f} s at most."
    varied = (
        "; the seed changes what the arm itself draws, not those"
        if any(one.get("started_from") for one in results)
        else ""
    )
    return f"Started from the models of {' and '.join(sorted(started_from))}{varied}. {took}"


def cell(figures: dict[str, Any]) -> str:
    """Mean, and the difference to the control with its interval and what it means."""
    if not math.isfinite(figures["mean"]):
        return "not reached by every seed"
    text, difference = f"{figures['mean']:.3f}", figures["difference"]
    if difference is None:
        return text
    verdict = "" if difference.low > 0 or difference.high < 0 else ", not resolved"
    return f"{text} ({difference.value:+.3f}, {difference.low:+.3f} to {difference.high:+.3f}{verdict})"


def draw(path: Path, question: dict[str, Any], measures: dict[str, dict[str, dict]]) -> None:
    """One panel per measure: every seed a dot, the mean a bar, the control's mean a line."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "ablations"
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(arm for arms in measures.values() for arm in arms))
    columns = min(PANELS_IN_A_ROW, len(measures))
    rows = -(-len(measures) // columns)
    figure = Figure(figsize=(3 + 2.4 * columns, rows * (0.35 * len(names) + 0.8)), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flat
    for (measure, arms), axes in zip(measures.items(), panels, strict=False):
        for place, arm in enumerate(names):
            if arm in arms and math.isfinite(arms[arm]["mean"]):
                values = list(arms[arm]["values"].values())
                axes.plot(values, [place] * len(values), "o", color="#3b6ea5", alpha=0.6)
                axes.plot([arms[arm]["mean"]], [place], "|", color="black", markersize=16)
        if math.isfinite(arms.get(question["control"], {"mean": math.nan})["mean"]):
            axes.axvline(arms[question["control"]]["mean"], color="#999999", linewidth=0.8)
        axes.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
        axes.set_title(measure, fontsize="medium")
    for axes in panels:  # the last row may have fewer
        axes.set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def record(root: Path, plan: dict[str, Any], answers: dict[str, tuple]) -> None:
    """One MLflow run per finished job in the experiment `ablations`: its changes, its curves, its figures; none twice."""
    client, experiment = open_store(root, EXPERIMENT)
    known = {run.data.tags.get("unmask.key") for run in client.search_runs([experiment], max_results=5000)}
    for name, (done, measures) in answers.items():
        for arm in done:
            for seed, folder in finished(root, name, arm, seeds_of(plan, name)).items():
                key = json.loads((folder / "result.json").read_text())["key"]
                if key in known:
                    continue
                tags = {"unmask.key": key, "unmask.question": name, "unmask.arm": arm}
                run = client.create_run(experiment, run_name=f"{name}: {arm}, seed {seed}", tags=tags).info.run_id
                for section, values in plan["questions"][name]["arms"][arm].items():
                    for option, value in values.items():
                        client.log_param(run, f"{section}.{option}", str(value)[:500])
                client.log_param(run, "seed", seed)
                for measure, arms in measures.items():
                    value = arms.get(arm, {"values": {}})["values"].get(seed, math.inf)
                    if math.isfinite(value):
                        client.log_metric(run, re.sub(r"[^\w\-. :/]", "", measure), value)  # what MLflow allows
                for file in sorted((folder / "data/curves").glob("*.csv")):
                    log_curve(client, run, file)
                client.set_terminated(run)


def log_curve(client: Any, run: str, file: Path) -> None:
    """Every point of a stage's curve as <stage>/<series>."""
    with file.open(encoding="utf-8") as lines:
        for point in csv.DictReader(lines):
            for series, value in point.items():
                if series != "step" and value:
                    client.log_metric(run, f"{file.stem}/{series}", float(value), step=int(point["step"]))


if __name__ == "__main__":
    sys.exit(main())
