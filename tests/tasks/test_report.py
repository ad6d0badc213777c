"""The report on made-up outputs of all stages: same bytes, nothing from elsewhere, honest verdicts, absent stages named."""

import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import report_world

from tasks import report
from tasks.reporting.charts import speculation_charts
from tasks.reporting.comparison import compare, forwards_ratio, trade_off
from tasks.reporting.goals import curve_gap, goal
from tasks.reporting.inputs import MODELS, read_inputs
from tasks.reporting.pieces import cut, marks_of
from tasks.reporting.samples import choose

FILES = ("report.json", "report.html", "table.txt")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("finished")
    report_world.write_everything(root)
    return root


@pytest.fixture(scope="module")
def files(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The report on `finished`, made once."""
    copy = tmp_path_factory.mktemp("files") / "root"
    shutil.copytree(finished, copy)
    return run(copy)


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    shutil.copytree(finished, tmp_path / "root")
    return tmp_path / "root"


def run(root: Path, section: dict | None = None) -> dict[str, str]:
    work = root / "work"
    work.mkdir(exist_ok=True)

    def publish(made: Path, out: str) -> Path:
        (root / out).parent.mkdir(parents=True, exist_ok=True)
        os.replace(made, root / out)
        return root / out

    tracker = SimpleNamespace(log_artifact=lambda path, folder=None: None)
    report.report(
        SimpleNamespace(
            section=section or {}, params={"preset": "tiny"}, root=root, work=work, tracker=tracker, publish=publish
        )
    )
    return {name: (root / "data/reports" / name).read_text(encoding="utf-8") for name in FILES}


def change(root: Path, name: str, edit) -> None:
    """Edits one JSON file below data/metrics."""
    path = root / "data/metrics" / name
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def test_the_same_inputs_give_the_same_bytes_wherever_they_lie(root: Path, files: dict[str, str]) -> None:
    assert run(root) == files


def test_the_page_refers_to_nothing_outside_the_project(files: dict[str, str]) -> None:
    page = files["report.html"]
    assert "://" not in page
    references = set(re.findall(r'(?:href|src|action|url)\s*[=(]\s*"?([^"\s)>]+)', page))
    assert {one for one in references if not one.startswith("#")} == {"data:,", "validation/index.html", "report.json"}
    assert "@import" not in page


def test_the_page_is_well_formed_and_has_every_model_section_and_chart(files: dict[str, str]) -> None:
    from lxml import html

    text = files["report.html"]
    page = html.document_fromstring(text)
    first_cells = [cell.text_content() for cell in page.xpath("//table")[0].xpath(".//tbody/tr/td[1]")]
    assert len(first_cells) == len(MODELS)
    assert all(cell.startswith(model.title) for cell, model in zip(first_cells, MODELS, strict=True))
    links = {link.get("href")[1:] for link in page.xpath("//nav/a")}
    assert links == {head.get("id") for head in page.xpath("//h2")}
    assert len(page.xpath("//svg")) == 10  # trade-off, categories, two by policy, four of losses
    for word in ("nan", "None", "inf", "built-in", "Undefined", "{{"):
        assert not re.search(rf"(?<![\w]){re.escape(word)}(?![\w])", page.xpath("//body")[0].text_content()), word
    opened, closed = (len(re.findall(rf"<{slash}(?:div|span|td|tr|table|svg|g|p)\b", text)) for slash in ("", "/"))
    assert opened == closed


def test_the_table_is_printed_and_kept_as_text(root: Path, capsys: pytest.CaptureFixture) -> None:
    table = run(root)["table.txt"]
    assert table in capsys.readouterr().out
    assert all(any(line.startswith(model.title) for line in table.splitlines()) for model in MODELS)
    assert "100 % of answers identical" in table and "mathematics" in table


def test_json_is_sorted_has_no_timings_and_no_places(files: dict[str, str], finished: Path) -> None:
    text = files["report.json"]
    value = json.loads(text)
    assert text == json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    assert not re.search(r"seconds|run_id|/tmp|" + re.escape(str(finished)), text)
    assert {row["instance"] for row in value["models"]} == {model.instance for model in MODELS}


@pytest.mark.parametrize(
    ("file", "stage"),
    [
        ("metrics/evaluate/tune_cap.json", "evaluate@tune_cap"),
        ("samples/finetune_diffusion_scaled.jsonl", "evaluate@finetune_diffusion_scaled"),
        ("metrics/speculate.json", "speculate"),
        ("curves/tune_cap_control.csv", "tune_cap@tune_cap_control"),
        ("metrics/validate.json", "validate"),
        ("tokens/tokenizer/tokenizer.json", "tokenize"),
    ],
)
def test_a_stage_that_has_not_run_is_named_with_its_file(root: Path, file: str, stage: str) -> None:
    (root / "data" / file).unlink()
    with pytest.raises(ValueError, match=re.escape(f"{stage}: no data/{file}")) as caught:
        run(root)
    assert f"dvc repro {stage}" in str(caught.value)
    assert not (root / "data/reports").exists()


def test_all_absent_stages_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        read_inputs(tmp_path)
    for stage in ("validate", "tokenize", "pretrain_ar", "finetune_ar", "evaluate@distill_draft", "speculate"):
        assert f"  {stage}: no " in str(caught.value)


def test_a_broken_file_says_which_stage_makes_it_anew(root: Path) -> None:
    (root / "data/metrics/speculate.json").write_text('{"rows": [')
    with pytest.raises(ValueError, match=r"speculate\.json is not whole.*dvc repro speculate"):
        run(root)


def test_an_unknown_setting_is_refused(finished: Path) -> None:
    with pytest.raises(ValueError, match=r"report: unknown key 'colour'"):
        run(finished, {"colour": "red"})


def test_the_threshold_is_chosen_on_validation_and_quoted_from_test(root: Path) -> None:
    def spoil(value: dict) -> None:
        for name, summary in value["sweep"]["validation"].items():
            if name not in ("threshold=0.95", value["main_point"]):
                summary["written_score"]["value"] = 0.0

    change(root, "evaluate/tune_cap.json", spoil)
    row = next(row for row in json.loads(run(root)["report.json"])["models"] if row["instance"] == "tune_cap")
    on_test = json.loads((root / "data/metrics/evaluate/tune_cap.json").read_text())["sweep"]["test"]["threshold=0.95"]
    assert row["equal_quality"]["chosen"] == "threshold=0.95"
    assert row["equal_quality"]["tokens_per_forward"] == on_test["tokens_per_forward"]["value"]


def test_cap_holds_only_when_it_beats_both_controls(root: Path) -> None:
    assert compare(read_inputs(root))["cap"]["claim"] == "holds"
    for part in ("metrics/evaluate/{}.json", "samples/{}.jsonl"):  # a control that is just as parallel
        shutil.copyfile(root / "data" / part.format("tune_cap"), root / "data" / part.format("tune_cap_control"))
    verdict = compare(read_inputs(root))["cap"]
    assert verdict["ratios"]["tune_cap_control"] | {"method": ""} == {
        "value": 1.0, "low": pytest.approx(1.0), "high": pytest.approx(1.0), "first": verdict["chosen"],
        "second": verdict["chosen"], "method": "", "verdict": "not resolved",
    }  # fmt: skip
    assert verdict["claim"] == "not resolved"


@pytest.mark.parametrize(("sure", "verdict"), [(True, "more parallel"), (False, "not resolved")])
def test_a_control_that_is_good_enough_nowhere_lies_below_cap_where_its_intervals_do(
    root: Path, sure: bool, verdict: str
) -> None:
    required = json.loads((root / "data/metrics/evaluate/finetune_diffusion.json").read_text())
    required = required["sweep"]["validation"][required["main_point"]]["written_score"]

    def spoil(value: dict) -> None:  # one token per forward is a matter of chance, but cannot be as parallel as CAP
        for name, summary in value["sweep"]["validation"].items():
            is_good = name == value["main_point"] or (name == "threshold=0.50" and not sure)
            score = required["value"] - (2 if name == value["main_point"] else 3) if is_good else 20.0
            high = required["high"] if is_good else required["low"] - 1.1
            summary["written_score"] = {"value": score, "low": 10.0, "high": high}

    change(root, "evaluate/finetune_diffusion_scaled.json", spoil)
    files = run(root)
    cap = json.loads(files["report.json"])["cap"]
    one = cap["unreached"]["finetune_diffusion_scaled"]
    assert one["verdict"] == verdict and set(cap["ratios"]) == {"finetune_diffusion", "tune_cap_control"}
    assert one["best"]["point"] == "tokens_per_step=1" and one["best"]["score"]["value"] == required["value"] - 2
    assert cap["claim"] == ("holds" if sure else "not resolved")
    told = f"control: scaled reaches the required {required['value'] - 1:.1f} points at none of its operating points"
    end = "; CAP is above it." if sure else "; whether CAP is above it is not resolved."
    assert told in files["table.txt"] and end in files["table.txt"] and told in files["report.html"]


def test_equal_quality_counts_written_answers_alone_and_not_near_zero(root: Path) -> None:
    def with_choices(value: dict) -> None:  # benchmarks decided by likelihood lift the score of every point alike
        for summary in (s for split in value["sweep"].values() for s in split.values()):
            summary["score"]["value"] = 50.0

    chosen = {row["instance"]: row["equal_quality"] for row in compare(read_inputs(root))["models"]}
    for model in MODELS:
        change(root, f"evaluate/{model.instance}.json", with_choices)
    assert {row["instance"]: row["equal_quality"] for row in compare(read_inputs(root))["models"]} == chosen
    change(
        root,
        "evaluate/finetune_diffusion.json",
        lambda value: value["sweep"]["validation"][value["main_point"]]["written_score"].update(value=2.0),
    )
    verdict = compare(read_inputs(root))
    assert verdict["cap"]["claim"] == "not resolved"
    assert all(row["equal_quality"] is None for row in verdict["models"])


def test_a_lost_score_is_not_equal_quality(root: Path) -> None:
    path = root / "data/samples/tune_cap.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(record | {"right": 0.0}) + "\n" for record in records))
    verdict = compare(read_inputs(root))["cap"]
    assert verdict["score"]["verdict"] == "lost" and verdict["claim"] == "does not hold"


def test_without_a_record_per_question_the_interval_is_the_widest_that_fits(root: Path) -> None:
    inputs = read_inputs(root)
    first, second = ("tune_cap", "threshold=0.90"), ("finetune_diffusion", "threshold=0.90")
    paired = forwards_ratio(inputs, first, second)
    inputs.records["tune_cap"].clear()
    wide = forwards_ratio(inputs, first, second)
    assert wide["value"] == pytest.approx(paired["value"], rel=1e-3)  # the sweep's figures are rounded
    assert wide["low"] < paired["low"] <= paired["value"] <= paired["high"] < wide["high"]


def test_no_validation_split_means_no_equal_quality_and_an_unresolved_claim(root: Path) -> None:
    for model in MODELS:
        change(root, f"evaluate/{model.instance}.json", lambda value: value["sweep"].pop("validation"))
    files = run(root)
    value = json.loads(files["report.json"])
    assert value["cap"]["claim"] == "not resolved" and all(row["equal_quality"] is None for row in value["models"])
    assert "Not resolved" in files["table.txt"]


def test_prompts_that_were_cut_are_said_in_the_table_and_on_the_page(root: Path) -> None:
    assert "did not fit" not in run(root)["table.txt"]
    change(root, "evaluate/tune_cap.json", lambda value: value["test"]["tokens_per_step=1"].update(truncated_prompts=7))
    files = run(root)
    sentence = "Prompts that did not fit the context and lost their beginning: CAP 7."
    assert sentence in files["table.txt"] and sentence in files["report.html"]


def test_a_benchmark_by_likelihood_beside_written_ones_takes_no_part_in_tokens_per_forward(root: Path) -> None:
    before = compare(read_inputs(root))["cap"]["ratios"]["finetune_diffusion"]
    for model in MODELS:
        path = root / f"data/samples/{model.instance}.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        points = {record["point"] for record in records}
        picks = [{"point": p, "id": "0", "benchmark": "picks", "category": "knowledge", "right": 1.0} for p in points]
        path.write_text("".join(json.dumps(record) + "\n" for record in [*records, *picks]))
    assert compare(read_inputs(root))["cap"]["ratios"]["finetune_diffusion"] == before


def test_benchmarks_without_written_answers_leave_the_samples_out(root: Path) -> None:
    for model in MODELS:
        path = root / f"data/samples/{model.instance}.jsonl"
        kept = ("point", "id", "benchmark", "category", "question", "answer", "right")
        records = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({key: record[key] for key in kept}) + "\n" for record in records))

        def strip(value: dict) -> None:
            for summaries in (value["test"], *value["sweep"].values()):
                for summary in summaries.values():
                    summary.pop("tokens_per_forward", None)

        change(root, f"evaluate/{model.instance}.json", strip)
    assert "ask for no written answers" in run(root)["report.html"]


def test_all_models_share_the_highest_score_of_the_area(root: Path) -> None:
    before = trade_off(read_inputs(root))

    def raise_score(value: dict) -> None:
        value["sweep"]["test"]["threshold=0.95"]["written_score"]["value"] = 100.0

    change(root, "evaluate/distill_draft.json", raise_score)
    after = trade_off(read_inputs(root))
    assert after["finetune_diffusion"]["aup"] < before["finetune_diffusion"]["aup"]


def test_a_character_of_several_tokens_is_one_piece_counted_by_its_last_byte() -> None:
    parts = ["说".encode()[:1], "说".encode()[1:2], "说".encode()[2:], b"a"]
    record = {"tokens": [0, 1, 2, 3], "revealed_at": [1, 5, 2, 3], "confidence": [0.1, 0.5, 0.2, 0.3]}
    pieces = cut(marks_of(record), lambda ids: (b"".join(parts[one] for one in ids).decode(errors="replace"), False))
    assert [(one.text, one.revealed_at, one.confidence) for one in pieces] == [("说", 5, 0.5), ("a", 3, 0.3)]


def test_the_samples_show_right_and_wrong_answers_of_different_benchmarks(finished: Path) -> None:
    inputs = read_inputs(finished)
    names = {"finetune_ar": "left_to_right", "finetune_diffusion": "threshold=0.90", "tune_cap": "threshold=0.90"}
    sides = [
        {(one["benchmark"], one["id"]): one for one in inputs.records[name][point]} for name, point in names.items()
    ]
    chosen = choose(sides)
    assert len(set(chosen)) == 6 and len({benchmark for benchmark, _ in chosen}) == 4
    assert {side[key]["right"] for side in sides for key in chosen} == {0.0, 1.0}


def test_goals_are_met_or_missed_only_where_the_whole_interval_lies_on_one_side(files: dict[str, str]) -> None:
    figures = json.loads(files["report.json"])
    ratio, gap, distance, one, many = figures["goals"]
    assert ratio["measured"]["value"] == figures["cap"]["ratios"]["finetune_diffusion"]["value"]
    ar = next(row["difference_to_sft"] for row in figures["models"] if row["instance"] == "finetune_ar")
    assert distance["measured"] == {"value": -ar["value"], "low": -ar["high"], "high": -ar["low"]}
    assert (one["verdict"], many["verdict"]) == ("met", "not resolved")
    assert one["remark"] == "whole states matched at depth 1, 2, ...: 83 %, 69 %, 57 %, 47 %"
    assert goal("", {"value": 0.5, "low": 0.4, "high": 0.6}, 0.61, "", None)["verdict"] == "missed"
    assert goal("", None, 0.0, "", None)["verdict"] == "not resolved"
    assert gap["measured"]["low"] <= gap["measured"]["value"] <= gap["measured"]["high"]
    assert re.fullmatch(r"at \d\.\d\d tokens per forward", gap["remark"])
    for row in figures["goals"]:
        assert row["what"].replace("'", "&#39;") in files["report.html"] and row["what"] in files["table.txt"]


def test_a_curve_is_compared_at_equal_tokens_per_forward() -> None:
    def points(**right: list[float]) -> dict:
        """Operating point -> records; a point's name ends in its tokens per forward."""
        names = {name: "tokens_per_step=1" if name == "at1" else f"threshold={name}" for name in right}
        return {
            names[name]: [
                {"benchmark": "sums", "right": one, "tokens": [5] * int(name[2:]), "forwards": 1} for one in answers
            ]
            for name, answers in right.items()
        } | {"tokens_per_step=8": [{"benchmark": "sums", "right": 1.0, "tokens": [5] * 2, "forwards": 1}]}

    reference = points(at1=[1.0, 1.0], at3=[1.0, 0.0])
    worst, place = curve_gap(points(at1=[1.0, 1.0], at2=[1.0, 0.0, 1.0], at5=[0.0, 0.0]), reference)
    assert (worst["value"], place) == (-25.0, 2.0), (
        "half of the second question is right between the reference's points"
    )
    assert worst["low"] <= -25.0 <= worst["high"]
    assert curve_gap(points(at4=[1.0, 1.0], at5=[1.0, 1.0]), reference) == (None, 0.0)


def test_what_models_write_cannot_become_markup(root: Path) -> None:
    path = root / "data/samples/finetune_ar.jsonl"
    path.write_text(path.read_text().replace(report_world.QUESTION, "<script>alert(1)</script>"))
    assert "<script>alert" not in run(root)["report.html"]


def test_speculation_is_drawn_by_depth_with_the_acceptance_of_the_deepest_run(finished: Path) -> None:
    figures = {"speculation": read_inputs(finished).metrics["speculate"]}
    titles = {title: series for title, _, series in speculation_charts(figures)}
    assert list(titles) == [
        f"{policy}: {what}" for policy in ("one token", "threshold 0.9") for what in ("target forwards", "acceptance")
    ]
    saved, right = titles["one token: target forwards"], titles["one token: acceptance"]
    assert [one.title for one in saved] == ["SFT, draft", "SFT, stale", "CAP, draft", "CAP, stale"]
    assert [mark.x for mark in saved[0].marks] == [0, 2, 4] and saved[0].marks[0].y == 1.0
    assert [mark.y for mark in right[0].marks] == pytest.approx([100 * 0.83**depth for depth in (1, 2, 3, 4)])
