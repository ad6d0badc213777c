"""Stages resume what was killed, never resume something else, and speak plainly."""

import os
from pathlib import Path

import pytest

from tasks.fingerprint import fingerprint
from tasks.parameters import check_keys, explain_section, load_params
from tasks.stage import LEFTOVERS, open_stage
from tests.conftest import Checkout


@pytest.fixture
def mini(checkout: Checkout) -> Checkout:
    checkout.pipeline({"download": [], "train": ["download"]}, {"train": "{steps: 4, rate: 3e-4}"})
    (checkout.root / "data/raw").mkdir(parents=True)
    (checkout.root / "data/raw/manifest.json").write_text("[]")
    return checkout


def test_a_killed_stage_goes_on_in_its_folder_and_its_run(mini: Checkout) -> None:
    mini.settings({"download": [], "train": []}, {"train": "{steps: 4, die: 1}"})
    assert mini.python("-m", "tasks.train").returncode == -9
    (left,) = (mini.root / ".work/train").iterdir()
    assert (left / "begun").read_text() == "1"
    done = mini.python("-m", "tasks.train")
    assert done.returncode == 0, done.stdout
    assert (mini.root / "data/models/train/manifest.json").is_file()
    assert not (mini.root / ".work/train").exists()
    from model.training.tracking import open_store

    client, experiment = open_store(mini.root)
    (run,) = client.search_runs([experiment], "attributes.run_name = 'train'")
    assert run.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] == [0, 1, 2, 3]
    assert run.data.tags["unmask.stage"] == "train"
    assert run.data.tags["unmask.data"].endswith(".dir")
    assert len(run.data.tags["unmask.git"]) >= 40
    assert run.data.params["die"] == "1"


def test_whatever_matters_changes_the_key_and_nothing_else_does(mini: Checkout) -> None:
    def key() -> str:
        return fingerprint(mini.root, "train").key

    seen = [key()]
    assert key() == seen[0]
    (mini.root / "README.scratch").write_text("no dep")
    assert key() == seen[0]
    (mini.root / "data/raw/manifest.json").write_text("[1]")
    seen.append(key())
    with (mini.root / "tasks/train.py").open("a") as program:
        program.write("# an edit\n")
    seen.append(key())
    mini.settings({"download": [], "train": []}, {"train": "{steps: 5}"})
    seen.append(key())
    assert len(set(seen)) == 4


def test_keys_without_dvc_change_with_the_same_things(mini: Checkout) -> None:
    (mini.root / ".dvc").rename(mini.root / "no-dvc")
    first = fingerprint(mini.root, "train")
    assert first == fingerprint(mini.root, "train")
    (mini.root / "data/raw/manifest.json").write_text("[1]")
    second = fingerprint(mini.root, "train")
    mini.settings({"download": [], "train": []}, {"train": "{steps: 5}"})
    assert len({first.key, second.key, fingerprint(mini.root, "train").key}) == 3
    with pytest.raises(ValueError, match="download, train"):
        fingerprint(mini.root, "trian")


def test_leftovers_of_other_settings_are_kept_but_not_for_ever(mini: Checkout) -> None:
    left = []
    for number in range(LEFTOVERS + 2):
        mini.settings({"download": [], "train": []}, {"train": f"{{steps: {number}}}"})
        with pytest.raises(KeyboardInterrupt), open_stage("train", mini.root) as stage:
            left.append(stage.work)
            os.utime(stage.work, (number, number))
            raise KeyboardInterrupt
    assert all(work.is_dir() for work in left)
    mini.settings({"download": [], "train": []}, {"train": "{steps: 99}"})
    with open_stage("train", mini.root) as stage:
        finished = stage.work
    assert not finished.exists()
    assert [work.is_dir() for work in left] == [False] * 2 + [True] * LEFTOVERS


def test_wrong_parameters_end_in_one_message_and_code_2(mini: Checkout) -> None:
    mini.settings({"download": [], "train": []}, {"train": "{wrong: 7, steps: 1}"})
    done = mini.python("-m", "tasks.train")
    assert done.returncode == 2
    assert "train: wrong is 7; leave it out" in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda root: (root / "params.yaml").unlink(), "make preset"),
        (lambda root: (root / "params.yaml").write_text("threads: 1\nseed: 0\ndownload: {}\n"), "no section 'train'"),
        (
            lambda root: (root / "params.yaml").write_text("train: {}\ntrian: {}\n"),
            "unknown section 'trian'.*mean train",
        ),
        (lambda root: (root / "params.yaml").write_text("threads: 0\nseed: 0\ntrain: {}\n"), "at least 1"),
        (lambda root: (root / "data/raw/manifest.json").unlink() or (root / "data/raw").rmdir(), "dvc repro train"),
    ],
)
def test_what_is_missing_is_named_with_the_way_out(mini: Checkout, break_it: object, said: str) -> None:
    break_it(mini.root)  # type: ignore[operator]
    with pytest.raises(ValueError, match=said), open_stage("train", mini.root):
        pass


def test_help_shows_the_settings_with_their_comments(mini: Checkout) -> None:
    with (mini.root / "params.yaml").open("a") as params:
        params.write("# about trainees\ntrainee: {}\n")
    text = (mini.root / "params.yaml").read_text().replace("train: {", "# how long it takes\ntrain: {")
    (mini.root / "params.yaml").write_text(text)
    shown = mini.python("-m", "tasks.train", "--help").stdout
    assert "A stand-in for a stage" in shown
    assert "# how long it takes\ntrain: {steps: 4" in shown
    assert "trainee" not in shown


def test_parameters_are_read_as_dvc_reads_them(tmp_path: Path) -> None:
    from dvc.utils.serialize import load_yaml

    file = tmp_path / "params.yaml"
    file.write_text(
        "a: 3e-4\nb: no\nc: 1e5\nd: true\ne: -.5\nf: on\ng: 1.\nh: 007x\ni: .inf\nj: 12\nk: 0.5e-3\nl: yes\n"
    )
    assert load_params(file) == load_yaml(str(file))


def test_a_stage_refuses_keys_it_does_not_know_and_misses_those_it_needs() -> None:
    check_keys("speculate", {"depths": [2], "threads": 1}, ["depths"])
    with pytest.raises(ValueError, match=r"speculate: unknown key 'depth'.*Did you mean depths\?"):
        check_keys("speculate", {"depths": [2], "depth": 2}, ["depths"])
    with pytest.raises(ValueError, match=r"speculate\.depths is missing"):
        check_keys("speculate", {}, ["depths"])


def test_a_section_ends_where_the_next_begins(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text("# one\na: 1\n\n# two\n# lines\nb:\n  c: 1 # why\n\n  d: 2\n# three\ne: 1\n")
    assert explain_section(file, "b") == "# two\n# lines\nb:\n  c: 1 # why\n\n  d: 2"
    assert explain_section(file, "zz") == ""
