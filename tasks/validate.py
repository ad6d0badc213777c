"""Lets only sound rows on to training: `python -m tasks.validate`, section `validate` of params.yaml.

Reads data/raw row by row. Kept rows go to data/validated, refused ones to data/quarantine with file, line and reason; suites of
data/suites judge the facts about the rows. The report is data/reports/validation/index.html. When too much is wrong the stage
fails, and quarantine, report and summary are there to say why, but no rows.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TextIO

from model.corpora.expectations import Outcome, Suite
from model.corpora.facts import FactTable, Totals, measure
from model.corpora.manifest import KINDS, MANIFEST_NAME, read_manifest
from model.corpora.options import RowOptions, read_options
from model.corpora.rows import CUT_CHARACTERS, Row, UnreadableFile, read_rows
from model.corpora.rules import CHECKS, BadRow, DuplicateFilter, content_of
from model.corpora.validation_page import CorpusReport, render
from tasks.stage import Stage, run_stage


@dataclass(frozen=True)
class ValidateOptions:
    """Section `validate` of params.yaml. Fractions are of the rows of one corpus."""

    maximum_characters: int = 20_000  # of one document or conversation
    maximum_bad_fraction: float = 0.01  # refused for any reason but being a duplicate
    maximum_duplicate_fraction: float = 0.2
    maximum_line_bytes: int = 4_194_304  # a longer line is refused without being held in memory
    shard_rows: int = 20_000  # rows whose facts Great Expectations sees at a time


def validate(stage: Stage) -> None:
    """Write validated rows, quarantine, summary, metrics and report. ValueError when too much is bad, and where to look."""
    options = read_options(ValidateOptions, {k: v for k, v in stage.section.items() if k != "threads"}, "validate")
    _check_limits(options)
    manifest = read_manifest(stage.root / "data/raw")
    if not manifest["corpora"]:
        raise ValueError(f"data/raw/{MANIFEST_NAME} names no corpus: name one under download, then run download.")
    made = stage.work / "made"
    shutil.rmtree(made, ignore_errors=True)
    for folder in ("validated", "quarantine", "report"):
        (made / folder).mkdir(parents=True)
    reports = []
    for kind in KINDS:
        entries = [entry for entry in manifest["corpora"] if entry["kind"] == kind]
        seen = DuplicateFilter(
            stage.work / "seen.sqlite"
        )  # across the corpora of a kind: the first that has a row keeps it
        for entry in entries:
            reports.append(_validate_corpus(stage, entry, options, seen, made))
        seen.close()
    _publish(stage, reports, made)
    if problems := [problem for report in reports for problem in report.problems]:
        raise ValueError("\n  ".join([f"{len(problems)} problem(s) with the text in data/raw:", *problems]))


def _check_limits(options: ValidateOptions) -> None:
    for item in fields(options):
        value = getattr(options, item.name)
        if "fraction" in item.name and not 0 <= value <= 1:
            raise ValueError(f"validate.{item.name} is {value}: a fraction lies between 0 and 1.")
        if "fraction" not in item.name and value < 1:
            raise ValueError(f"validate.{item.name} is {value}: it must be at least 1.")


def _validate_corpus(
    stage: Stage, entry: Mapping[str, Any], options: ValidateOptions, seen: DuplicateFilter, made: Path
) -> CorpusReport:
    """Judge every row of one corpus, writing kept and refused rows below `made`."""
    kind, name = entry["kind"], entry["name"]
    suite = Suite(stage.root / f"data/suites/{kind}.json")
    totals, table = Totals(), FactTable(kind)
    place = Path("benchmarks.jsonl") if kind == "benchmarks" else Path(kind) / f"{name}.jsonl"
    row_options = _row_options(entry["options"])
    with ExitStack() as files:
        keep = _keeper(files, made / "validated" / place, is_kept=kind != "benchmarks")
        refuse = files.enter_context(_open(made / "quarantine" / place))
        for file, row in _rows(stage.root, entry, row_options, options, totals):
            canonical, reason, detail = _judge(kind, row, row_options, options, seen)
            if reason == "blank_line":
                totals.blank_lines += 1
                continue
            if canonical is None:
                table.add_quarantined(reason)
                totals.add_quarantined(reason, f"{file}:{row.number}", detail)
                refuse.write(_quarantined(file, row, reason, detail))
            else:
                measures = measure(kind, canonical)
                table.add_kept(measures)
                totals.add_kept(measures)
                keep(canonical)
            if 2 * len(table) >= 3 * options.shard_rows:  # so that the last shard is never a handful of rows
                suite.add(table.take(options.shard_rows))
    if len(table):
        suite.add(table.take(len(table)))
    report = CorpusReport(kind, name, entry["source"], entry["weight"], totals, suite.outcomes, [])
    report.problems = list(_problems(report, options, made))
    print(
        f"validate: {report.title}: {totals.kept} of {totals.rows} rows kept, {len(report.problems)} problem(s)",
        flush=True,
    )
    return report


def _rows(
    root: Path, entry: Mapping[str, Any], row_options: RowOptions, options: ValidateOptions, totals: Totals
) -> Iterator[tuple[str, Row]]:
    """(path, row) over the files of a corpus; a file that breaks is noted in `totals` and the next one is read."""
    columns, optional = row_options.columns(entry["kind"])
    for record in (file for source in entry["sources"] for file in source["files"]):
        name = f"data/raw/{record['path']}"
        if not (root / name).is_file():
            raise ValueError(f"{name} is in the manifest but not on disk: run download again.")
        try:
            yield from (
                (name, row)
                for row in read_rows(root / name, columns, row_options.txt_rows, options.maximum_line_bytes, optional)
            )
        except UnreadableFile as error:
            totals.unreadable[name] = str(error)


def _judge(
    kind: str, row: Row, row_options: RowOptions, options: ValidateOptions, seen: DuplicateFilter
) -> tuple[dict[str, Any] | None, str, str]:
    """(canonical row, "", "") of a sound row, (None, reason, detail) of another."""
    if row.reason:
        return None, row.reason, row.detail
    try:
        canonical = CHECKS[kind](row.value, row_options, options.maximum_characters)
    except BadRow as bad:
        return None, bad.reason, bad.detail
    if seen.is_duplicate(content_of(canonical)):
        return None, "duplicate", ""
    return canonical, "", ""


def _problems(report: CorpusReport, options: ValidateOptions, made: Path) -> Iterator[str]:
    """What stops the stage, each with the way out."""
    totals, title, kind = report.totals, report.title, report.kind
    quarantine = f"data/quarantine/{title}.jsonl"
    for file, problem in totals.unreadable.items():
        yield f"{file} {problem}, then run again; or take the file out of download.{kind}."
    bad_limit = 0.0 if kind == "benchmarks" else options.maximum_bad_fraction
    if totals.bad_fraction > bad_limit:
        reasons = [(n, reason) for reason, n in totals.quarantined.items() if reason != "duplicate"]
        top = "; ".join(
            f"{n} x {reason}, first at {totals.examples[reason]}" for n, reason in sorted(reasons, reverse=True)[:3]
        )
        rule = (
            "a benchmark must be whole" if kind == "benchmarks" else f"validate.maximum_bad_fraction is {bad_limit:g}"
        )
        yield (
            f"{title}: {sum(n for n, _ in reasons)} of {totals.rows} rows are bad ({totals.bad_fraction:.2%}), but {rule}: "
            f"{top}. All of them stand in {quarantine}. Correct the text, or change the limit that they break."
        )
    if totals.duplicate_fraction > options.maximum_duplicate_fraction:
        yield (
            f"{title}: {totals.quarantined['duplicate']} of {totals.rows} rows are duplicates, but "
            f"validate.maximum_duplicate_fraction is {options.maximum_duplicate_fraction:g}; first at "
            f"{totals.examples['duplicate']}, all in {quarantine}. Take the repeated files out, or raise the limit."
        )
    if totals.kept == 0 and not totals.unreadable:
        yield f"{title}: not one of its {totals.rows} rows is left. Look at {quarantine} and at the field names."
    for one in report.outcomes:
        if not one.success and totals.kept:
            yield _failed_expectation(title, kind, one)


def _failed_expectation(title: str, kind: str, one: Outcome) -> str:
    reason = f" ({one.why})" if one.why else ""
    return (
        f"{title}: the suite expects {one.asked}{reason}; observed: {one.seen}. Correct the text, or the "
        f"expectation ({one.type}) in data/suites/{kind}.json."
    )


def _publish(stage: Stage, reports: list[CorpusReport], made: Path) -> None:
    """Move everything to its place; the rows themselves only when nothing is wrong."""
    passed = not any(report.problems for report in reports)
    if not passed:
        shutil.rmtree(made / "validated")
        (made / "validated").mkdir()
    summary: dict[str, Any] = {"passed": passed, "corpora": {}}
    metrics: dict[str, Any] = {}
    for report in reports:
        counts = report.totals.described()
        expectations = [{"expected": one.asked, "observed": one.seen, "passed": one.success} for one in report.outcomes]
        summary["corpora"][report.title] = {
            "kind": report.kind,
            "name": report.name,
            "source": report.source,
            "weight": report.weight,
            **counts,
            "expectations": expectations,
            "problems": report.problems,
        }
        metrics[report.title] = {name: counts[name] for name in ("rows", "kept", "characters", "words")} | {
            "quarantined": report.totals.quarantined.total(),
            "failed_expectations": sum(not e["passed"] for e in expectations),
        }
    _write_json(made / "validated/summary.json", summary)
    _write_json(made / "validate.json", metrics)
    (made / "report/index.html").write_text(render(reports), encoding="utf-8")
    stage.tracker.log_metrics(data_metrics(reports))
    stage.tracker.log_artifact(made / "report/index.html", "validation")
    for made_name, out in (
        ("report", "data/reports/validation"),
        ("quarantine", "data/quarantine"),
        ("validate.json", "data/metrics/validate.json"),
        ("validated", "data/validated"),
    ):
        stage.publish(made / made_name, out)


def data_metrics(reports: list[CorpusReport]) -> dict[str, float]:
    """What MLflow shows of the data: rows and fractions over all corpora, and by corpus `data/<kind>/<name>/...`."""
    by_name = {"": Totals(), **{f"{report.kind}/{report.name}/": report.totals for report in reports}}
    whole = by_name[""]
    for report in reports:
        whole.rows += report.totals.rows
        whole.kept += report.totals.kept
        whole.quarantined += report.totals.quarantined
    metrics: dict[str, float] = {}
    for name, totals in by_name.items():
        metrics |= {
            f"data/{name}rows": totals.rows,
            f"data/{name}kept_rows": totals.kept,
            f"data/{name}refused_fraction": totals.bad_fraction,
            f"data/{name}duplicate_fraction": totals.duplicate_fraction,
        }
    return metrics | {"data/failed_expectations": sum(not one.success for each in reports for one in each.outcomes)}


def _row_options(written: Mapping[str, Any]) -> RowOptions:
    """How the manifest says the rows of a corpus are named; the usual names for a generated corpus."""
    known = {item.name for item in fields(RowOptions)}
    return RowOptions(**{name: value for name, value in written.items() if name in known})


def _keeper(files: ExitStack, path: Path, is_kept: bool) -> Callable[[dict[str, Any]], None]:
    if not is_kept:  # benchmarks are read where they are: what is wrong with one stops the stage
        return lambda row: None
    stream = files.enter_context(_open(path))
    return lambda row: (stream.write(json.dumps(row, ensure_ascii=False) + "\n"), None)[1]


def _open(path: Path) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("w", encoding="utf-8", newline="\n", buffering=1 << 18)


def _quarantined(file: str, row: Row, reason: str, detail: str) -> str:
    """One line of the quarantine: ASCII, for a refused row may hold what no file should."""
    cut = row.cut or json.dumps(row.value, ensure_ascii=False, default=str)[:CUT_CHARACTERS]
    return json.dumps({"file": file, "line": row.number, "reason": reason, "detail": detail, "cut": cut}) + "\n"


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_stage(validate, "validate")
