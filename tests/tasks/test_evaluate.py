"""The evaluate stage on tiny untrained networks: what it writes, that it repeats itself and takes up where it stopped."""

import json
from types import SimpleNamespace

import pytest
import torch

from model.benchmarks.settings import EvaluateConfig, operating_points
from model.benchmarks.subject import match_confidence
from model.checkpoints.store import export_checkpoint, load_checkpoint, save_checkpoint
from model.corpora import toy_world
from model.network.config import NetworkConfig
from model.network.transformer import Transformer
from model.text.tokenizer import add_mask_token, load_tokenizer, train_tokenizer
from tasks import evaluate

torch.set_num_threads(1)  # untrained networks of a few hundred numbers

SECTION = {"test_items": 2, "sweep_items": 1, "validation_items": 1, "max_new_tokens": 24, "thresholds": [0.05, 0.9]}
BENCHMARKS = {"people": "knowledge", "writing": "coding"}


class Recorder:
    """A tracker that keeps what it is told."""

    def __init__(self):
        self.metrics, self.figures = [], []

    def log_metrics(self, metrics, step=0):
        self.metrics.append((step, metrics))

    def log_artifact(self, path, folder=None):
        assert path.exists()

    def log_figure(self, figure, name):
        self.figures.append((figure, name))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    config = toy_world.WorldConfig()
    folder = root / "data/raw/benchmarks"
    folder.mkdir(parents=True)
    texts = []
    for name in BENCHMARKS:
        for split in ("validation", "test"):
            rows = toy_world.questions(config, name, split, 2)
            texts += [row["question"] + row["answer"] for row in rows]
            (folder / f"{name}.{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train_tokenizer(iter(texts), 300, root / "plain")
    tokenizer = load_tokenizer(root / "plain")
    eos, mask = tokenizer.eos_token_id, add_mask_token(tokenizer, root / "masked")
    for seed, name in enumerate(("finetune_ar", "finetune_diffusion", "tune_cap")):
        causal = name == "finetune_ar"
        network_config = NetworkConfig(
            vocabulary_size=len(tokenizer), hidden_size=16, num_layers=1, num_heads=2, feed_forward_size=32,
            maximum_positions=512, attention="causal" if causal else "block_causal",
            eos_token_id=eos, mask_token_id=None if causal else mask,
        )  # fmt: skip
        network = Transformer(network_config)
        network.initialise(torch.Generator().manual_seed(seed))
        with torch.no_grad():
            network.norm.weight.mul_(40.0 if name == "tune_cap" else 20.0)  # tune_cap: the more confident one
        save_checkpoint(root / "data/models" / name, network, network_config, root / ("plain" if causal else "masked"))
    return root


def run(root, instance, monkeypatch, section=SECTION, key="key"):
    monkeypatch.setattr(toy_world, "BENCHMARKS", BENCHMARKS)
    work = root / ".work" / instance / key
    work.mkdir(parents=True, exist_ok=True)
    stage = SimpleNamespace(
        name="evaluate",
        instance=instance,
        address=f"evaluate@{instance}",
        section=section,
        seed=0,
        root=root,
        work=work,
        tracker=Recorder(),
    )
    evaluate.main(stage)
    result = json.loads((root / f"data/metrics/evaluate/{instance}.json").read_text())
    return stage, result, (root / f"data/samples/{instance}.jsonl").read_text()


def test_a_diffusion_model_gets_its_points_on_both_splits_and_the_same_bytes_again(root, monkeypatch):
    stage, result, samples = run(root, "finetune_diffusion", monkeypatch)
    names = ["tokens_per_step=1", "tokens_per_step=8", "threshold=0.05", "threshold=0.90"]
    assert result["main_point"] == names[0] and set(result["test"]) == {names[0], names[3]}
    assert all(set(result["sweep"][split]) == set(names) for split in ("validation", "test"))
    assert result["test"][names[0]]["items"] == 4 and result["sweep"]["test"][names[0]]["items"] == 2
    parallel = {name: one["tokens_per_forward"]["value"] for name, one in result["sweep"]["test"].items()}
    assert parallel[names[0]] <= 1.0 < parallel[names[1]] <= 8.0
    rows = [json.loads(line) for line in samples.splitlines()]
    assert [row["point"] for row in rows] == [names[0]] * 4 + [names[1]] * 2 + [names[2]] * 2 + [names[3]] * 4
    assert all(len(row["tokens"]) == len(row["revealed_at"]) == len(row["confidence"]) for row in rows)
    again = run(root, "finetune_diffusion", monkeypatch, key="another")
    assert (again[1], again[2]) == (result, samples)
    logged = dict(pair for _, metrics in stage.tracker.metrics for pair in metrics.items())
    assert {"eval/score", "eval/tpf", "eval/people/accuracy", "eval/coding/score", "eval/sweep/tpf"} <= set(logged)
    assert [step for step, metrics in stage.tracker.metrics if "eval/sweep/score" in metrics] == [0, 1, 2, 3]
    assert [name for _, name in stage.tracker.figures] == ["plots/score_against_tpf.png"]


def test_a_model_from_a_foreign_layout_is_evaluated_as_the_pipelines_own(root, monkeypatch, tmp_path):
    own = load_checkpoint(root / "data/models/finetune_diffusion")
    export_checkpoint(tmp_path / "theirs", own.network, own.config, "qwen3", own.folder)
    _, wanted, samples = run(root, "finetune_diffusion", monkeypatch)
    section = SECTION | {"start_from": {"theirs": str(tmp_path / "theirs")}}
    _, found, theirs = run(root, "theirs", monkeypatch, section)  # data/models has nothing of this name
    assert found == wanted | {"instance": "theirs"}
    assert theirs == samples
    with pytest.raises(ValueError, match="not a checkpoint"):
        run(root, "theirs", monkeypatch, SECTION | {"start_from": {"theirs": "nowhere/at/all"}}, "nowhere")


def test_an_autoregressive_model_has_one_point_of_one_token_per_forward(root, monkeypatch):
    _, result, _ = run(root, "finetune_ar", monkeypatch)
    assert list(result["test"]) == ["left_to_right"]
    assert result["test"]["left_to_right"]["tokens_per_forward"]["value"] == 1.0


def test_the_scaled_control_is_as_confident_as_the_tuned_model_and_keeps_its_weights_else(root, monkeypatch):
    _, result, _ = run(root, "finetune_diffusion_scaled", monkeypatch)
    assert result["logit_scale"] > 1.0 and result["confidence_unscaled"] < result["confidence_goal"]
    # At so few tokens confidence moves in jumps (a changed argmax order changes the text), so close, not equal.
    gap = abs(result["confidence_scaled"] - result["confidence_goal"])
    assert gap < 0.25 * (result["confidence_goal"] - result["confidence_unscaled"])


def public(root, **spec):
    """Settings with two benchmarks in files of one's own and no toy_world: written answers and choices."""
    folder = root / "data/raw/benchmarks"
    sums = [{"question": "what is " + "one and " * n + "two?", "answer": f"#### {n}"} for n in (2, 300, 4, 5)]
    picks = [{"goal": f"to go {n}", "a": "walk", "b": "walk and walk", "label": 0} for n in range(4)]
    for name, rows in (("sums", sums), ("picks", picks)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    local = {
        "sums": {"path": "sums.jsonl", "category": "mathematics", **spec},
        "picks": {"path": "picks.jsonl", "question": "goal", "choices": "a,b", "answer": "label", **spec},
    }
    return SECTION | {"tasks": ["sums", "picks"], "local": local, "likelihood_draws": 1, "scale_items": 1}


@pytest.mark.parametrize("set_apart", [0, 2])
def test_public_benchmarks_alone_are_enough_for_every_instance(root, monkeypatch, set_apart):
    section, key = public(root, validation_rows=set_apart), f"public-{set_apart}"
    for instance in ["finetune_diffusion_scaled", "finetune_ar"][: 1 + bool(set_apart)]:
        _, result, samples = run(root, instance, monkeypatch, section, key)
        assert set(result["sweep"]) == ({"test", "validation"} if set_apart else {"test"})
        main = result["test"][result["main_point"]]
        assert (main["items"], main["truncated_prompts"]) == (4, 1)
        assert set(main["categories"]) == {"mathematics", "public"}
        records = [json.loads(line) for line in samples.splitlines()]
        assert {"tokens" in record for record in records if record["benchmark"] == "picks"} == {False}
        assert result.get("confidence_split", "") in ("", "validation" if set_apart else "test")


def test_an_interrupted_evaluation_repeats_only_the_pass_it_had_not_finished(root, monkeypatch):
    from model.benchmarks import harness

    _, result, samples = run(root, "finetune_diffusion", monkeypatch, key="first")
    (root / ".work/finetune_diffusion/first/validation-threshold=0.90-1.json").unlink()
    calls, real = [], harness.run_tasks
    monkeypatch.setattr(harness, "run_tasks", lambda *given, **options: calls.append(1) or real(*given, **options))
    assert run(root, "finetune_diffusion", monkeypatch, key="first")[1:] == (result, samples)
    assert len(calls) == 1


def test_scale_search_meets_its_goal_and_stops():
    asked = []

    def confidence(scale):
        asked.append(scale)
        return scale / (1 + scale)

    assert match_confidence(confidence, 0.75, tolerance=1e-3) == pytest.approx(3.0, rel=0.01)
    assert len(asked) <= 4  # an evaluation is a whole decode
    steep = lambda scale: 1 - 0.5 ** (scale**3)  # noqa: E731 - far from the line the search assumes
    assert steep(match_confidence(steep, 0.97)) == pytest.approx(0.97, abs=2e-3)
    assert match_confidence(confidence, 0.5) == 1.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"thresholds": [0.5]}, "main_threshold 0.9 must be one of"),
        ({"tokens_per_step": [8]}, "must hold 1"),
        ({"sweep_items": 3}, "sweep_items 3 must not exceed"),
        ({"test_itms": 3}, "test_itms is unknown"),
        ({"test_items": 0}, "at least 1"),
        ({"tasks": []}, "tasks is empty"),
        ({"local": {"gsm8x": {"path": "gsm8k.jsonl"}}}, "local describes gsm8x, which"),
    ],
)
def test_settings_that_contradict_are_refused_by_name(change, words):
    with pytest.raises(ValueError, match=words):
        EvaluateConfig.from_section(SECTION | change)


def test_an_unknown_model_or_none_is_said_in_one_line(root, monkeypatch):
    with pytest.raises(ValueError, match="not a checkpoint"):
        run(root, "nobody", monkeypatch)
    with pytest.raises(ValueError, match="--instance"):
        evaluate.main(SimpleNamespace(instance=None, section={}))


def test_points_are_named_so_that_they_sort_and_read_the_same_everywhere():
    assert list(operating_points(EvaluateConfig(), "causal")) == ["left_to_right"]
    assert list(operating_points(EvaluateConfig(), "block_causal"))[:3] == [
        "tokens_per_step=1",
        "tokens_per_step=8",
        "threshold=0.50",
    ]
