"""The speculate stage on random networks: nothing changes, everything is counted."""

import io
import json
import shutil
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from model.checkpoints.derive import layer_subset
from model.checkpoints.store import export_checkpoint, load_checkpoint, save_checkpoint
from model.network.config import NetworkConfig
from model.network.transformer import Transformer
from model.text.tokenizer import add_mask_token, load_tokenizer, train_tokenizer
from tasks.speculate import Decoding, speculate
from tasks.speculation_costs import Costs

WORDS = "the red boat has nine lamps and the blue boat has two"


class Recorder:
    """A tracker that keeps curves: name -> {step: value}."""

    def __init__(self) -> None:
        self.curves: dict[str, dict[int, float]] = {}

    def log_metrics(self, metrics, step=0) -> None:
        for name, value in metrics.items():
            assert isinstance(value, float)
            assert step not in self.curves.setdefault(name, {})
            self.curves[name][step] = value

    def log_artifact(self, path) -> None:
        assert path.is_file()


def write_models(root: Path) -> None:
    train_tokenizer(iter([WORDS] * 50), 300, root / "plain")
    mask = add_mask_token(load_tokenizer(root / "plain"), root / "tokenizer")
    tokenizer = load_tokenizer(root / "tokenizer")
    config = NetworkConfig(
        vocabulary_size=len(tokenizer), hidden_size=16, num_layers=2, num_heads=2, feed_forward_size=24,
        attention="block_causal", block_tokens=4, mask_token_id=mask, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, maximum_positions=128,
    )  # fmt: skip
    network = Transformer(config)
    network.initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    models = root / "data/models"
    models.mkdir(parents=True)
    for name in ("finetune_diffusion", "tune_cap"):
        save_checkpoint(models / name, network, config, root / "tokenizer")
    save_checkpoint(
        models / "distill_draft", layer_subset(network, [0]), replace(config, num_layers=1), root / "tokenizer"
    )
    benchmarks = root / "data/raw/benchmarks"
    benchmarks.mkdir(parents=True)
    rows = [{"question": f"{WORDS[:length]}?", "answer": "2"} for length in (8, 20, 33)]
    rows.insert(1, {"question": WORDS * 50, "answer": "2"})  # longer than the context
    (benchmarks / "boats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_stage(root: Path, **changes) -> SimpleNamespace:
    section = {
        "prompts_per_benchmark": 3, "max_new_tokens": 8, "batch_rows": 2, "sources": ["draft", "stale", "both"],
        "depths": [1, 2], "policies": {"one_token": {"name": "one_token"}},
    }  # fmt: skip
    (root / ".work").mkdir(exist_ok=True)

    def publish(made, out):
        (root / out).parent.mkdir(parents=True, exist_ok=True)
        return made.rename(root / out)

    return SimpleNamespace(
        name="speculate",
        root=root,
        work=root / ".work",
        section=section | changes,
        params={"evaluate": {"tasks": ["boats"], "local": {"boats": {"path": "boats.jsonl"}}}},
        seed=0,
        tracker=Recorder(),
        publish=publish,
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("root")
    write_models(root)
    return root


@pytest.fixture(scope="module")
def finished(root: Path) -> SimpleNamespace:
    stage, printed = make_stage(root), io.StringIO()
    with redirect_stdout(printed):
        speculate(stage)
    stage.printed = printed.getvalue()
    stage.figures = json.loads((root / "data/metrics/speculate.json").read_text())
    stage.costs = json.loads((root / "data/reports/speculation_costs.json").read_text())
    return stage


def test_every_combination_is_measured_and_none_changes_a_token(finished) -> None:
    found = finished.figures
    assert "1 of 3 prompts are longer than 120 tokens: left out" in finished.printed
    assert found["num_prompts"] == 2 and len(found["rows"]) == 2 * 1 * 3 * 2
    for row in found["rows"]:
        assert row["identical_fraction"] == 1.0
        assert row["target_forwards"] <= row["plain_target_forwards"]
        assert row["forwards_ratio"] == round(row["plain_target_forwards"] / row["target_forwards"], 4)
        assert (row["draft_forwards"] == 0) == (row["source"] == "stale")
        assert set(row["acceptance"]) <= {str(depth) for depth in range(1, row["depth"] + 1)}
        assert row["flop_speed_up"] <= 1.0  # guesses add tokens
    assert any(row["forwards_ratio"] > 1 for row in found["rows"])


def test_curves_over_depth_reach_the_tracker_and_times_stay_out_of_what_dvc_tracks(finished, root: Path) -> None:
    curves = finished.tracker.curves
    for name in ("forwards_ratio", "wall_clock_ratio", "rows_1/predicted_speed_up", "rows_2/recommended_depth"):
        assert set(curves[f"spec/tune_cap/one_token/both/{name}"]) == {1, 2}
    tracked = (root / "data/metrics/speculate.json").read_bytes()
    again = make_stage(root)
    speculate(again)
    assert (root / "data/metrics/speculate.json").read_bytes() == tracked
    assert (
        again.tracker.curves["spec/tune_cap/one_token/plain_seconds"] != curves["spec/tune_cap/one_token/plain_seconds"]
    )


def test_an_adaptive_depth_stays_below_the_largest_and_guesses_less_the_dearer_guesses_are(root: Path) -> None:
    depths = {}
    for cost in (0.0, 5.0):
        stage = make_stage(root, sources=["stale"], depths=[3], adaptive_depth={"row_cost": cost}, max_new_tokens=40)
        speculate(stage)
        rows = json.loads((root / "data/metrics/speculate.json").read_text())["rows"]
        assert [row["adaptive"] for row in rows] == [False, True] * 2
        assert all(row["identical_fraction"] == 1.0 for row in rows)
        assert set(stage.tracker.curves["spec/tune_cap/one_token/stale_adaptive/forwards_ratio"]) == {3}
        depths[cost] = rows[-1]["mean_depth"]
        assert depths[cost] <= rows[0]["mean_depth"] <= 3
    assert depths[5.0] < 0.5 < depths[0.0]


def test_models_from_a_foreign_layout_are_speculated_with_as_the_pipelines_own(
    finished, root: Path, tmp_path: Path
) -> None:
    given = {}
    for name in ("finetune_diffusion", "tune_cap", "distill_draft"):
        own = load_checkpoint(root / "data/models" / name)
        export_checkpoint(tmp_path / "theirs" / name, own.network, own.config, "qwen3", own.folder)
        given[name] = (
            f"theirs/{name}" if name == "tune_cap" else str(tmp_path / "theirs" / name)
        )  # from the root, or absolute
    (tmp_path / "data").mkdir()
    (tmp_path / "data/raw").symlink_to(root / "data/raw")
    speculate(make_stage(tmp_path, start_from=given))
    assert json.loads((tmp_path / "data/metrics/speculate.json").read_text()) == finished.figures


def test_a_draft_with_another_tokenizer_of_the_same_size_is_refused(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "data/models/distill_draft", tmp_path / "other")
    file = tmp_path / "other/tokenizer.json"
    described = json.loads(file.read_text())
    ids = described["model"]["vocab"]
    first, second = (next(text for text, token in ids.items() if token == wanted) for wanted in (100, 101))
    ids[first], ids[second] = ids[second], ids[first]
    file.write_text(json.dumps(described))
    stage = make_stage(root, start_from={"distill_draft": str(tmp_path / "other")}, sources=["draft"])
    with pytest.raises(ValueError, match=r"different tokenizers: token 100 is .* distilled from this target"):
        speculate(stage)


def test_the_recommended_depth_follows_from_what_forwards_cost_here(finished) -> None:
    assert len(finished.costs) == 12
    for one in finished.costs:
        for model in one["models"]:
            costs = Costs(*(model[name] for name in ("rows", "seconds", "verify", "draft", "row_cost")))
            assert set(model["verify"]) == {"1", "2"} and costs.seconds > 0 and costs.draft > 0
            assert costs.recommend(one["source"], model["match_probability"], 2)[0] == model["recommended_depth"]


def test_guessing_pays_where_reading_weights_costs_and_not_where_computing_does() -> None:
    memory_bound, compute_bound = Costs(1, 1.0, {}, 0.5, 0.0), Costs(1, 1.0, {}, 0.5, 1.0)
    assert memory_bound.recommend("stale", 0.5, 8) == (8, pytest.approx((1 - 0.5**9) / 0.5))
    assert compute_bound.recommend("stale", 0.9, 8) == (0, 1.0)
    # E / (1 + c k) with a = 0.8, c = 0.1: 1.64 at 1, 2.03 at 2, 2.27 at 3, 2.40 at 4, 2.459 at 5, 2.470 at 6, 2.448 at 7
    assert Costs(1, 1.0, {}, 0.1, 0.0).recommend("draft", 0.8, 8) == (6, pytest.approx(2.470, abs=1e-3))
    assert Costs(1, 1.0, {}, 0.1, 0.0).speed_up("both", 0.8, 2) == pytest.approx(2.44 / 1.1)


@pytest.mark.parametrize(("is_logic", "words"), [(True, "an error of logic"), (False, "rounding")])
def test_a_changed_answer_fails_the_stage_and_says_whether_float64_agrees(root, monkeypatch, is_logic, words) -> None:
    original = Decoding.run

    def run(self, target, policy, source=None, **others):
        answers, seconds = original(self, target, policy, source, **others)
        is_double = next(self.models[target].network.parameters()).dtype == torch.float64
        if source and (is_logic or not is_double):
            answers[-1].tokens[-1] += 1
        return answers, seconds

    monkeypatch.setattr(Decoding, "run", run)
    with pytest.raises(RuntimeError, match=f"1 of 2 answers changed, first of prompt 1.*{words}"):
        speculate(make_stage(root, sources=["stale"], depths=[1]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sources": ["crystal"]}, "draft, stale, both"),
        ({"depths": []}, "speculate.depths is empty"),
        ({"depths": [0]}, "must be at least 1"),
        ({"widht": 2}, "widht.*width"),
        ({"width": 0}, "speculate.width is 0"),
        ({"adaptive_depth": {"draft_price": 1}}, "draft_price.*draft_cost and row_cost"),
        ({"start_from": {"teacher": "x"}}, "start_from names teacher"),
    ],
)
def test_a_setting_that_cannot_be_is_named(root: Path, changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        speculate(make_stage(root, **changes))


def test_missing_prompts_are_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/models").symlink_to(root / "data/models")
    with pytest.raises(ValueError, match="run the download stage"):
        speculate(make_stage(tmp_path))
