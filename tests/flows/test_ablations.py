"""The ablation queue: wrong plans are refused, a killed queue goes on where it was, the page holds what was measured."""

import json
import signal
import sqlite3
import time
from pathlib import Path

import pytest
import yaml

from flows.ablations import describe, jobs, prepare_folder, use_base, waiting
from tasks.ablation_measures import measured, right_at, score, steps_until
from tasks.ablation_plan import read_plan, seeds_of, slug
from tasks.ablations import answer, page
from tests.conftest import ROOT, Checkout

STAND_IN = """
import json, os, random, shutil, sys, time
from pathlib import Path
import yaml

params = yaml.safe_load(Path("params.yaml").read_text())
section = params.get(NAME) or {}
with open(LOG, "a") as log:
    log.write(f"{NAME} {Path.cwd()}\\n")
time.sleep(section.get("seconds", 0))
for folder in ("raw", "validated", "tokens", "models", "metrics", "curves"):
    Path("data", folder).mkdir(parents=True, exist_ok=True)
for model in ("tune", "first") if NAME == "first" else ("tune",):
    made, target = Path("made"), Path("data/models", model)
    made.mkdir()
    (made / "weights").write_text(NAME)
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    os.replace(made, target)
value = section.get("value", 1.0) + 0.01 * random.Random(params["seed"]).random()
Path(f"data/metrics/{NAME}.json").write_text(json.dumps({"val/bits_per_byte": value}))
Path(f"data/curves/{NAME}.csv").write_text(f"step,val/bits_per_byte\\n5,{value}\\n")
"""


def plan_of(**changes) -> dict:
    question = {
        "asks": "Is less more?", "stages": ["tune"], "control": "more",
        "measures": {"bits": ["tune.json", "val/bits_per_byte"]},
        "arms": {"more": {"tune": {"value": 2.0}}, "less, a little": {"tune": {"value": 1.0}}},
    }  # fmt: skip
    return {"preset": "mini", "seeds": [0, 1, 2], "base": ["first"], "questions": {"size": question | changes}}


@pytest.fixture
def mini(checkout: Checkout) -> Checkout:
    """Two stand-in stages that note when they run."""
    for name in ("first", "tune"):
        text = STAND_IN.replace("NAME", repr(name)).replace("LOG", repr(str(checkout.root / "log.txt")))
        (checkout.root / f"tasks/{name}.py").write_text(text)
    preset = {"preset": "mini", "seed": 0, "first": {}, "tune": {"value": 0.0, "seconds": 0.3}}
    (checkout.root / "presets/mini.yaml").write_text(yaml.safe_dump(preset))
    (checkout.root / "plan.yaml").write_text(yaml.safe_dump(plan_of()))
    return checkout


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({**plan_of(), "seeds": [0, 1]}, "fewer than three"),
        (plan_of(seeds=[0, 1]), "fewer than three"),
        (plan_of(control="none"), "control of size, 'none', is none of its arms"),
        (plan_of(arms={"more": {"tunes": {}}}), "changes tunes, which the preset does not have"),
        (plan_of(items={"score": "threshold=0.90"}), "compares answers and does not say whose: instance is missing"),
        ({"preset": "mini"}, "seeds is missing"),
    ],
)
def test_a_wrong_plan_is_refused_before_any_job(plan, message, tmp_path: Path):
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets/mini.yaml").write_text("{preset: mini, tune: {}, first: {}}")
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    with pytest.raises(ValueError, match=message):
        read_plan(tmp_path, tmp_path / "plan.yaml")


def test_the_plan_of_the_repository_names_only_what_exists():
    plan = read_plan(ROOT, ROOT / "flows/ablations.yaml")
    base, others = jobs(ROOT, plan)
    assert (
        len({job.folder for job in others})
        == len(others)
        == sum(len(seeds_of(plan, name)) * len(q["arms"]) for name, q in plan["questions"].items())
    )
    assert len({job.key for job in others}) >= len(others) - 6  # two controls may be the same work under two questions
    stages = {stage.partition("@")[0] for job in (base, *others) for stage in job.stages}
    assert all((ROOT / f"tasks/{stage}.py").is_file() for stage in stages)


def test_what_is_common_to_a_question_lies_under_its_arms_changes(tmp_path: Path):
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets/mini.yaml").write_text("{preset: mini, tune: {steps: 5, value: 0.0}, first: {}}")
    plan = plan_of(common={"tune": {"steps": 9, "value": 7.0}})
    _, others = jobs(tmp_path, plan, ["size"])
    assert [job.params["tune"] for job in others[:2]] == [{"steps": 9, "value": 2.0}, {"steps": 9, "value": 1.0}]
    with pytest.raises(ValueError, match="there is no question 'sizes'"):
        jobs(tmp_path, plan, ["sizes"])


def test_steps_are_counted_until_the_curve_is_where_the_controls_ended(tmp_path: Path):
    assert steps_until([(10, 3.0), (20, 2.0), (30, 1.0)], 1.5) == 25
    assert steps_until([(10, 1.0), (20, 0.5)], 1.0) == 10, "not earlier than it was looked at"
    for arm, values in (("slow", "10,4\n20,3\n30,2\n"), ("fast", "10,3\n20,1\n"), ("never", "10,9\n")):
        (tmp_path / arm / "data/curves").mkdir(parents=True)
        (tmp_path / arm / "data/curves/tune.csv").write_text("step,bits\n" + values)
    place = {"curve": "tune", "series": "bits", "until": "control"}
    steps = [measured(place, {0: tmp_path / arm}, {0: tmp_path / "slow"})[0] for arm in ("slow", "fast", "never")]
    assert steps == [30, 15, float("inf")]
    assert measured(place, {0: tmp_path / "fast"}, {}) == {}


def test_the_score_at_a_parallelism_lies_between_the_thresholds_around_it(tmp_path: Path):
    (tmp_path / "data/samples").mkdir(parents=True)
    points = {"threshold=0.90": (3, [1, 1]), "threshold=0.80": (5, [1, 0]), "tokens_per_step=8": (4, [0, 0])}
    records = [
        {"point": name, "benchmark": "sums", "right": float(right), "tokens": [7] * parallel, "forwards": 1}
        for name, (parallel, answers) in points.items()
        for right in answers
    ]
    (tmp_path / "data/samples/tune.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    found = [right_at(tmp_path, "tune", {"tokens_per_forward": parallel}) for parallel in (3.0, 4.5, 5.5)]
    assert found == [{"sums": [1.0, 1.0]}, {"sums": [1.0, 0.25]}, None], "no other policy's point is on the curve"
    assert score({0: found[0], 1: None}, None)["mean"] == float("inf")
    assert score({0: found[1], 1: found[1]}, {0: found[0], 1: found[0]})["difference"].value == -37.5


MINI = {"preset": "mini", "seed": 0, "tune": {}, "first": {}, "network": {"hidden_size": 8}, "tokenize": {}}


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """What a finished pipeline leaves, beside a checkout `root` with the preset `mini`."""
    (tmp_path / "root/presets").mkdir(parents=True)
    (tmp_path / "root/presets/mini.yaml").write_text(yaml.safe_dump(MINI))
    made = tmp_path / "pipeline"
    for name in ("raw/benchmarks/one", "tokens/one", "models/first/weights", "models/tune/weights", "own_answers/rows"):
        (made / "data" / name).parent.mkdir(parents=True)
        (made / "data" / name).write_text(name)
    (made / "params.yaml").write_text(yaml.safe_dump(MINI | {"preset": "large"}))
    return made


def test_arms_start_from_the_models_of_a_finished_pipeline_and_begin_again_when_they_change(pipeline: Path):
    root = pipeline.parent / "root"
    base, others = jobs(root, plan_of(), given=pipeline)
    assert base is None and len(list(waiting(root, base, others))) == 6
    use_base(root, pipeline)
    folder = prepare_folder(root, others[0])
    assert (folder / "data/models/first/weights").resolve() == pipeline / "data/models/first/weights"
    assert not (folder / "data/models/tune").exists(), "what the job makes itself"
    assert others[0].started_from.startswith("preset large, seed 0, ")
    (pipeline / "data/models/first/weights").write_text("others")
    assert not {job.key for job in others} & {job.key for job in jobs(root, plan_of(), given=pipeline)[1]}
    use_base(root, None)
    assert pipeline.is_dir() and not (root / ".work/ablations/base").exists()


def test_a_base_that_has_not_run_or_is_of_another_shape_is_refused(pipeline: Path):
    with pytest.raises(ValueError, match=r"has no data/raw: name a checkout in which `make run` has ended"):
        describe(pipeline.parent, MINI)
    with pytest.raises(
        ValueError, match=r"was made with network \{'hidden_size': 8\}, the preset .* has \{'hidden_size': 9\}"
    ):
        describe(pipeline, MINI | {"network": {"hidden_size": 9}})


def test_scores_are_paired_on_the_questions_that_both_sides_answered():
    few = {seed: {"sums": [1.0, 0.0], "maps": [1.0, 1.0]} for seed in range(3)}
    many = {seed: {"sums": [1.0, 0.0, 0.0, 0.0], "maps": [1.0, 1.0, 0.0, 0.0]} for seed in range(3)}
    found = score(many, few)
    assert found["mean"] == 37.5 and (found["difference"].low, found["difference"].high) == (0.0, 0.0)
    assert score(few, None)["difference"] is None and score({0: few[0]}, few)["difference"] is None


def test_models_that_the_base_has_evaluated_stand_beside_the_arms(tmp_path: Path):
    def evaluated(folder: Path, instance: str, speed: float, right: list[int]) -> None:
        (folder / "data/metrics/evaluate").mkdir(parents=True, exist_ok=True)
        (folder / "data/samples").mkdir(exist_ok=True)
        (folder / f"data/metrics/evaluate/{instance}.json").write_text(json.dumps({"speed": speed}))
        lines = [json.dumps({"point": "p", "benchmark": "sums", "right": one}) for one in right]
        (folder / f"data/samples/{instance}.jsonl").write_text("\n".join(lines))

    measures = {"speed": ["evaluate/{instance}.json", "speed"], "bits": ["{instance}.json", "bits"]}
    plan = plan_of(
        instance="tune", measures=measures, items={"score": "p"}, references={"before": "first"}, found="Yes."
    )
    for arm, speed in (("more", 2.0), ("less, a little", 3.0)):
        for seed in range(3):
            folder = tmp_path / f".work/ablations/size/{slug(arm)}/{seed}"
            evaluated(folder, "tune", speed + seed / 100, [1, 1, 0, 1])
            (folder / "data/metrics/tune.json").write_text('{"bits": 0.5}')
            (folder / "result.json").write_text('{"key": "", "seconds": 3, "started_from": "preset large"}')
    evaluated(tmp_path / ".work/ablations/base", "first", 1.0, [0, 0, 0, 0, 1, 1])
    done, found = answer(tmp_path, plan, "size")
    assert set(done) == {"more", "less, a little"} and "before" not in found["bits"]
    assert found["speed"]["before"]["difference"].value == pytest.approx(-1.01)
    assert found["score"]["before"]["difference"].value == -75.0
    text = page(tmp_path, plan, {"size": (done, found)})
    assert "\n| before | – | 1.000 (-1.010, -1.035 to -0.985) |  | 33.333 (-75.000, " in text
    assert (
        "\nYes.\n" in text
        and "Started from the models of preset large; the seed changes what the arm itself draws, not those. An arm took 3 s"
        in text
    )


@pytest.mark.slow
def test_a_killed_queue_goes_on_and_the_page_holds_what_was_measured(mini: Checkout):
    command = ("-m", "flows.ablations", "--arms", "plan.yaml")
    process = mini.start(*command)
    deadline = time.monotonic() + 300
    while mini.runs_of("tune") < 3:
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=120)
    before = len(list((mini.root / ".work/ablations/size").rglob("result.json")))
    assert 2 <= before < 6
    done = mini.python(*command)
    assert done.returncode == 0, done.stdout
    assert mini.runs_of("first") == 1 and mini.runs_of("tune") <= 7  # at most the one that was killed ran twice
    base = mini.root / ".work/ablations/base/data/models"
    assert (base / "tune/weights").read_text() == "first", "a job must not write into what all share"
    assert (mini.root / ".work/ablations/size/more/0/data/models/first").resolve() == base / "first"
    values = {}
    for file in (mini.root / ".work/ablations/size").rglob("data/metrics/tune.json"):
        values[file.parts[-5], file.parts[-4]] = json.loads(file.read_text())["val/bits_per_byte"]
    means = {arm: sum(values[arm, str(seed)] for seed in range(3)) / 3 for arm in ("more", "less-a-little")}
    text = (mini.root / "docs/ablations.md").read_text()
    assert f"| more (control) | 3 | {means['more']:.3f} |" in text
    assert f"| less, a little | 3 | {means['less-a-little']:.3f} (-1.000, -1.000 to -1.000) |" in text
    assert (mini.root / "docs/ablations/size.svg").is_file()
    with sqlite3.connect(mini.root / "mlruns/mlflow.db") as database:
        query = "select count(*) from runs join experiments using (experiment_id) where experiments.name = 'ablations'"
        assert database.execute(query).fetchone() == (6,)
    again = mini.python(*command, "--list")
    assert "0 of 7 jobs to do" in again.stdout
    (mini.root / "tasks/tune.py").write_text((mini.root / "tasks/tune.py").read_text() + "# edited\n")
    assert "7 of 7 jobs to do" in mini.python(*command, "--list").stdout  # code is part of the key


@pytest.mark.slow
def test_a_cancelled_queue_ends_the_stage_under_way(mini: Checkout):
    arms = {"more": {"tune": {"seconds": 600}}, "less": {"tune": {"seconds": 600, "value": 1.0}}}
    (mini.root / "plan.yaml").write_text(yaml.safe_dump(plan_of(arms=arms)))
    process = mini.start("-m", "flows.ablations", "--arms", "plan.yaml")
    deadline = time.monotonic() + 300
    while not mini.runs_of("tune"):
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) != 0
    assert mini.runs_of("tune") == 1, "no job begins after that"
    assert not list((mini.root / ".work/ablations/size").rglob("result.json"))
