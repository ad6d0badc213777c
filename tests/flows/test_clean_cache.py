"""Collecting garbage with the real dvc: what a registered version needs stays, what nothing needs goes."""

from pathlib import Path

import pytest

from flows.clean_cache import collect, registered
from model.training.mlflow_tracker import MlflowTracker
from model.training.tracker import RunIdentity
from model.training.tracking import local_store, log_lineage, open_store
from tests.conftest import Checkout

PIPELINE = """
stages:
  data: {cmd: mkdir -p made && cp words made/words, deps: [words], outs: [made]}
  big: {cmd: tr a-z A-Z < made/words > big, deps: [made], outs: [big]}
"""


def run(checkout: Checkout, words: str) -> set[str]:
    """Makes the model of these words; the cache's files that are new since."""
    before = cached(checkout)
    (checkout.root / "words").write_text(words)
    done = checkout.python("-m", "dvc", "repro")
    assert done.returncode == 0, done.stdout
    return cached(checkout) - before


def cached(checkout: Checkout) -> set[str]:
    files = checkout.root / ".dvc/cache/files"
    return {path.relative_to(files).as_posix() for path in files.rglob("*") if path.is_file()}


def register(root: Path, key: str, record: bool = True) -> None:
    tracker = MlflowTracker(root, RunIdentity("register", key))
    if record:
        log_lineage(tracker, root)
    client, _ = open_store(root)
    if not client.search_registered_models():
        client.create_registered_model("unmask-target")
    client.create_model_version("unmask-target", (root / "big").as_uri(), tracker.run)
    tracker.close()


def test_a_registered_version_can_be_restored_after_the_cache_was_cleaned(checkout: Checkout, tmp_path: Path) -> None:
    (checkout.root / "dvc.yaml").write_text(PIPELINE)
    (checkout.root / ".gitignore").write_text((checkout.root / ".gitignore").read_text() + "/made/\n/big\n")
    first = run(checkout, "first")
    register(checkout.root, "first")
    lock = (checkout.root / "dvc.lock").read_text()
    second, third = run(checkout, "second"), run(checkout, "third")
    assert first and second and third
    (tmp_path / "kept").mkdir()
    collect(checkout.root, registered(checkout.root, tmp_path / "kept"))
    assert cached(checkout) == first | third
    (checkout.root / "dvc.lock").write_text(lock)
    restored = checkout.python("-m", "dvc", "checkout", "--force")
    assert restored.returncode == 0, restored.stdout
    assert (checkout.root / "big").read_text() == "FIRST"


def test_a_version_without_a_record_stops_the_cleaning(checkout: Checkout, tmp_path: Path) -> None:
    register(checkout.root, "old", record=False)
    with pytest.raises(ValueError, match="unmask-target-1: registered without"):
        registered(checkout.root, tmp_path)
    assert registered(checkout.root, tmp_path, unrecorded=True) == []


def test_a_version_whose_run_was_deleted_for_good_stops_the_cleaning(checkout: Checkout, tmp_path: Path) -> None:
    (checkout.root / "dvc.lock").write_text("schema: '2.0'\n")
    register(checkout.root, "kept")
    client, _ = open_store(checkout.root)
    (version,) = client.search_model_versions()
    client.delete_run(version.run_id)
    assert len(registered(checkout.root, tmp_path)) == 1  # on MLflow's page it can be brought back
    done = checkout.python(
        *("-m", "mlflow", "gc", "--run-ids", version.run_id),
        *("--backend-store-uri", local_store(checkout.root), "--tracking-uri", local_store(checkout.root)),
    )
    assert done.returncode == 0, done.stdout
    with pytest.raises(ValueError, match="unmask-target-1: registered without"):
        registered(checkout.root, tmp_path)


def test_a_run_under_way_stops_the_cleaning(checkout: Checkout) -> None:
    from flows.start import alone

    with alone(checkout.root):
        refused = checkout.python("-m", "flows.clean_cache")
    assert refused.returncode == 2
    assert "a run is under way" in refused.stdout
