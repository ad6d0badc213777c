"""Puts what the stages measured side by side: data/reports/report.json, report.html (opens from disk) and table.txt.

    python -m tasks.report

Reads data/metrics, data/curves and data/samples. The same inputs give the same bytes: no seconds, no run ids.
"""

import json
from pathlib import Path

from tasks.parameters import check_keys
from tasks.reporting.figures import gather
from tasks.reporting.inputs import read_inputs
from tasks.reporting.page import render
from tasks.reporting.wording import as_text
from tasks.stage import Stage, run_stage


def report(stage: Stage) -> None:
    """Publishes the three files and prints the table; ValueError that names every stage that has yet to run."""
    check_keys("report", stage.section, ())
    inputs = read_inputs(stage.root)
    figures = gather(inputs, str(stage.params.get("preset", "")))
    table = as_text(figures)
    for name, text in (
        ("report.json", json.dumps(figures, indent=1, sort_keys=True, ensure_ascii=False) + "\n"),
        ("report.html", render(figures, inputs)),
        ("table.txt", table),
    ):
        publish(stage, name, text)
    print(f"\n{table}\nThe page: {stage.root / 'data/reports/report.html'}", flush=True)


def publish(stage: Stage, name: str, text: str) -> Path:
    """Writes data/reports/<name> in one rename and attaches it to the run."""
    made = stage.work / name
    made.write_text(text, encoding="utf-8", newline="\n")
    path = stage.publish(made, f"data/reports/{name}")
    stage.tracker.log_artifact(path)
    return path


if __name__ == "__main__":
    run_stage(report, "report")
