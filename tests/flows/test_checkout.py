"""A preset's own working tree: at a commit, with its parameters, beside the user's outputs."""

import subprocess
from pathlib import Path

import pytest
import yaml

from flows.checkout import (
    current_commit,
    hand_over,
    overridden,
    prepare_checkout,
    preset_settings,
    receive,
    uncommitted,
)
from tasks.parameters import load_params
from tests.conftest import Checkout


def test_a_checkout_has_the_preset_with_overrides_and_the_clone_is_left_alone(checkout: Checkout) -> None:
    clone = checkout.root
    before = {path: path.read_bytes() for path in clone.glob("*") if path.is_file()}
    (clone / ".dvc/config.local").write_text("['remote \"far\"']\n    url = /far\n[core]\n    remote = far\n")
    folder = prepare_checkout(clone, "smoke", current_commit(clone))
    settings = preset_settings(folder, "smoke", {"pretrain_ar.steps": 7, "seed": 3})
    assert prepare_checkout(clone, "smoke", current_commit(clone), settings) == folder
    params, preset = load_params(folder / "params.yaml"), load_params(clone / "presets/smoke.yaml")
    assert (params["seed"], params["pretrain_ar"]["steps"]) == (3, 7)
    assert {name for name in preset if preset[name] != params[name]} == {"seed", "pretrain_ar"}
    assert {path: path.read_bytes() for path in clone.glob("*") if path.is_file()} == before
    assert not uncommitted(clone)
    local = (folder / ".dvc/config.local").read_text()
    assert f"dir = {clone}/.dvc/cache\n" in local
    assert "url = /far" in local
    prepare_checkout(clone, "smoke", current_commit(clone), preset_settings(folder, "smoke", {}))
    assert (folder / "params.yaml").read_bytes() == (clone / "presets/smoke.yaml").read_bytes()


def test_a_checkout_follows_the_commit(checkout: Checkout) -> None:
    clone = checkout.root
    first = prepare_checkout(clone, "smoke", current_commit(clone))
    (clone / "README.md").write_text("new\n")
    assert uncommitted(clone) == ["README.md"]
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    subprocess.run(["git", *identity, "commit", "-qam", "new"], cwd=clone, check=True)
    assert (first / "README.md").read_text() != "new\n"
    assert prepare_checkout(clone, "smoke", current_commit(clone)) == first
    assert (first / "README.md").read_text() == "new\n"


@pytest.mark.parametrize(
    ("overrides", "words"), [({"sead": 1}, "Did you mean seed"), ({"pretrain_ar.step": 1}, "pretrain_ar.steps")]
)
def test_an_override_of_nothing_is_refused_with_the_nearest_name(overrides: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        overridden({"seed": 0, "pretrain_ar": {"steps": 3}}, overrides)


def test_an_unknown_preset_or_commit_is_refused(checkout: Checkout) -> None:
    with pytest.raises(ValueError, match="no preset 'smoky'; it has ablate, files"):
        preset_settings(checkout.root, "smoky", {})
    with pytest.raises(ValueError, match="push it first"):
        prepare_checkout(checkout.root, "smoke", "0" * 40)


def test_what_one_machine_hands_over_the_other_has(tmp_path: Path, checkout: Checkout) -> None:
    checkout.pipeline({"download": [], "left": ["download"], "right": ["download"]})
    other = tmp_path / "other"
    subprocess.run(["cp", "-r", str(checkout.root), str(other)], check=True)
    entries = {
        name: {"cmd": f"python -m tasks.{name}", "outs": [{"path": name, "md5": name}]} for name in ("download", "left")
    }
    (checkout.root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": entries}))
    given = hand_over(checkout.root, {"download", "left"})
    assert set(given["entries"]) == {"download", "left"}
    receive(other, **given)
    assert hand_over(other, {"download", "left", "right"})["entries"] == given["entries"]
    stamp = (other / "dvc.lock").stat().st_mtime_ns
    receive(other, **given)
    assert (other / "dvc.lock").stat().st_mtime_ns == stamp
