"""Runs are continued, not doubled; a store that is away delays points and loses none."""

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model.training.file_tracker import FileTracker
from model.training.mlflow_tracker import PARENT_TAG, MlflowTracker, open_tracker
from model.training.pipeline_run import announce_pipeline_run, close_pipeline_run, current_pipeline_run
from model.training.tracker import DeferredTracker, RunIdentity, Tracker
from model.training.tracking import KEY_TAG, open_store, run_status

ROOT = Path(__file__).resolve().parents[3]
IDENTITY = RunIdentity("pretrain", "key-1", {"unmask.stage": "pretrain"})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    open_store(root)
    return root


def history(root: Path, run: str, metric: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in open_store(root)[0].get_metric_history(run, metric)]


def kill(tracker: MlflowTracker) -> None:
    """As the end of its process: nothing is closed, and the system lets go of its files."""
    tracker._spool._stream.close()


def runs_with_key(root: Path, key: str) -> list[Any]:
    client, experiment = open_store(root)
    return client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'")


def test_a_run_that_was_killed_goes_on_and_no_point_is_doubled(store: Path) -> None:
    first = MlflowTracker(store, RunIdentity("train", "killed"))
    first.log_params({"steps": 8, "nested": {"rate": 0.1}})
    for step in range(5):
        first.log_metrics({"train/loss": 1.0 / (step + 1)}, step)
    first.flush()
    kill(first)
    second = MlflowTracker(store, RunIdentity("train", "killed"))
    second.log_params({"steps": 8, "nested": {"rate": 0.1}})
    for step in range(3, 8):  # training went back to its last checkpoint
        second.log_metrics({"train/loss": 1.0 / (step + 1)}, step)
    second.close()
    assert first.run == second.run
    assert history(store, second.run, "train/loss") == [(step, 1.0 / (step + 1)) for step in range(8)]
    assert run_status(store, second.run) == "FINISHED"


def test_a_finished_run_and_another_key_are_left_alone(store: Path) -> None:
    finished = MlflowTracker(store, RunIdentity("train", "done"))
    finished.close()
    open_one = MlflowTracker(store, RunIdentity("train", "open"))
    kill(open_one)
    assert len({finished.run, open_one.run, MlflowTracker(store, RunIdentity("train", "done")).run}) == 3
    assert MlflowTracker(store, RunIdentity("train", "open")).run == open_one.run
    assert MlflowTracker(store, RunIdentity("other", "open")).run != open_one.run


def test_points_wait_while_the_store_is_away(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = MlflowTracker(store, RunIdentity("train", "away"))
    with monkeypatch.context() as away:

        def refuse(*arguments: Any, **named: Any) -> None:
            raise ConnectionError("the store is away")

        away.setattr(tracker.client, "log_batch", refuse)
        for step in range(4):
            tracker.log_metrics({"train/loss": float(step)}, step)
        tracker.flush()
    assert history(store, tracker.run, "train/loss") == []
    tracker.close()
    assert history(store, tracker.run, "train/loss") == [(step, float(step)) for step in range(4)]


def test_what_the_store_did_not_take_before_a_kill_arrives_later_and_once(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store goes away, takes a part of a batch without saying so, and the process is killed: the next stage delivers."""
    identity = RunIdentity("train", "spooled")
    first = MlflowTracker(store, identity)
    first.log_metrics({"train/loss": 0.0}, 0)
    first.flush()
    send = first.client.log_batch

    def time_out(run: str, metrics: Any = (), **named: Any) -> None:
        send(run, metrics=metrics[:2], **named)
        raise ConnectionError("the answer was lost")

    with monkeypatch.context() as away:
        away.setattr(first.client, "log_batch", time_out)
        for step in range(1, 6):
            first.log_metrics({"train/loss": float(step)}, step)
        first._next_try = 0.0
        first.flush()
    kill(first)
    assert history(store, first._spool.run, "train/loss") == [(step, float(step)) for step in range(3)]
    open_tracker(store, RunIdentity("next", "stage")).close()
    (run,) = runs_with_key(store, "spooled")
    assert history(store, run.info.run_id, "train/loss") == [(step, float(step)) for step in range(6)]


def test_a_stage_that_begins_and_ends_while_the_store_is_away_is_recorded_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        away = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", away)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("model.training.mlflow_tracker.time.sleep", lambda seconds: None)
    (tmp_path / "curve.csv").write_text("step,loss")
    tracker = open_tracker(tmp_path, RunIdentity("train", "offline"))
    assert "cannot be reached" in tracker.location
    tracker.log_params({"steps": 3})
    for step in range(3):
        tracker.log_metrics({"train/loss": float(step)}, step)
    tracker.log_artifact(tmp_path / "curve.csv")
    (tmp_path / "curve.csv").unlink()  # the work folder goes away with the stage
    tracker.close()
    with pytest.raises(OSError):
        _ = tracker.run
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    open_tracker(tmp_path, RunIdentity("next", "stage")).close()
    (run,) = runs_with_key(tmp_path, "offline")
    assert history(tmp_path, run.info.run_id, "train/loss") == [(step, float(step)) for step in range(3)]
    assert (run.data.params, run.info.status) == ({"steps": "3"}, "FINISHED")
    assert (tmp_path / "mlruns/artifacts" / run.info.run_id / "artifacts/curve.csv").read_text() == "step,loss"
    assert not list((tmp_path / ".work/tracking").rglob("*.jsonl"))


def test_a_crash_is_recorded_and_what_was_logged_before_it_is_there(store: Path) -> None:
    tracker = open_tracker(store, RunIdentity("train", "crash"))
    tracker.log_metrics({"train/loss": 2.0}, 1)
    tracker.close("FAILED")
    (run,) = runs_with_key(store, "crash")
    assert run.info.status == "FAILED"
    assert run.data.metrics == {"train/loss": 2.0}


def test_a_folder_and_a_file_become_artifacts(store: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint/config.json").write_text("{}")
    tracker = MlflowTracker(store, RunIdentity("train", "files"))
    tracker.log_checkpoint(tmp_path / "checkpoint")
    tracker.log_artifact(tmp_path / "checkpoint/config.json", "settings")
    tracker.close()
    artifacts = store / "mlruns/artifacts" / tracker.run / "artifacts"
    assert sorted(path.relative_to(artifacts).as_posix() for path in artifacts.rglob("*.json")) == [
        "checkpoint/config.json",
        "settings/config.json",
    ]


def test_a_tracker_that_records_lets_no_call_fall_through_to_the_one_that_forgets() -> None:
    calls = {name for name in vars(Tracker) if not name.startswith("_")} - {"flush"}
    for tracker in (FileTracker, DeferredTracker, MlflowTracker):
        assert calls - {"location"} <= set(vars(tracker))


def test_a_deferred_tracker_records_news_and_forgets_the_rest(store: Path) -> None:
    for key, is_news in (("news", True), ("old", False)):
        tracker = DeferredTracker(
            lambda key=key: open_tracker(store, RunIdentity("download", key)), lambda is_news=is_news: is_news
        )
        tracker.log_metrics({"data/files": 3.0})
        tracker.close()
    assert [run.data.metrics for run in runs_with_key(store, "news")] == [{"data/files": 3.0}]
    assert runs_with_key(store, "old") == []


def test_the_file_tracker_continues_after_a_line_was_cut(tmp_path: Path) -> None:
    first = FileTracker(tmp_path, IDENTITY)
    first.log_metrics({"train/loss": 3.0}, 0)
    first.log_metrics({"train/loss": 2.0}, 1)
    whole = first.file.read_text()
    first.file.write_text(whole + '{"metrics": {"train/lo')
    second = FileTracker(tmp_path, IDENTITY)
    for step, loss in ((1, 2.0), (2, 1.0)):
        second.log_metrics({"train/loss": loss}, step)
    second.close()
    points = [(line["step"], line["metrics"]["train/loss"]) for line in second._records() if "metrics" in line]
    assert points == [(0, 3.0), (1, 2.0), (2, 1.0)]


def test_a_pass_over_the_pipeline_links_new_and_earlier_runs(store: Path) -> None:
    skipped = open_tracker(store, RunIdentity("tokenize", "from-yesterday"))
    skipped.close()
    announce_pipeline_run(store, {"unmask.preset": "mini"})
    stale = current_pipeline_run(store)
    announce_pipeline_run(store, {"unmask.preset": "mini"})
    parent = current_pipeline_run(store)
    assert parent is not None
    assert parent != stale
    assert run_status(store, stale or "") == "KILLED"
    child = MlflowTracker(store, RunIdentity("train@one", "today", {}, parent))
    child.close()
    links = close_pipeline_run(store, {"train@one": "today", "tokenize": "from-yesterday", "report": "never"}, [])
    client, _ = open_store(store)
    assert client.get_run(child.run).data.tags[PARENT_TAG] == parent
    assert links == {"train@one": child.run, "tokenize": runs_with_key(store, "from-yesterday")[0].info.run_id}
    assert client.get_run(parent).data.tags["stage.tokenize"] == links["tokenize"]
    assert client.get_run(parent).data.tags["stage.train/one"] == child.run  # MLflow refuses "@" there
    assert run_status(store, parent) == "FINISHED"
    assert current_pipeline_run(store) is None


def test_processes_that_start_together_make_one_sound_store(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from model.training.mlflow_tracker import open_tracker;"
        "from model.training.tracker import RunIdentity;"
        "t = open_tracker(Path(sys.argv[1]), RunIdentity('s', sys.argv[2])); t.log_metrics({'m': 1.0}, 1); t.close()"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path), f"k{number}"], cwd=ROOT) for number in range(3)
    ]
    assert [process.wait(timeout=120) for process in started] == [0, 0, 0]
    client, experiment = open_store(tmp_path)
    runs = client.search_runs([experiment])
    assert sorted(run.data.tags[KEY_TAG] for run in runs) == ["k0", "k1", "k2"]
    assert all(run.info.status == "FINISHED" and run.data.metrics == {"m": 1.0} for run in runs)
