"""Who is champion, in a real SQLite registry: pairs move together, back and forth, and nothing is lost on the way."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model.training.tracking import open_store
from tasks.promotion import champions, decisions
from tasks.promotion.champions import DRAFT, LEADER, aliases, is_pending, promote, record, roll_back, version_of

ROOT = Path(__file__).resolve().parents[3]
CAP = "unmask-target-cap"


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("registry")
    open_store(root)
    return root


@pytest.fixture
def root(empty_store: Path, tmp_path: Path) -> Path:
    shutil.copytree(empty_store / "mlruns", tmp_path / "mlruns")
    return tmp_path


def add(root: Path, name: str, draft: str = "") -> str:
    """A version whose files are there, the challenger of its name, the champion where there is none."""
    client, _ = open_store(root)
    if not aliases(client, name) and not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    number = str(len(client.search_model_versions(f"name = '{name}'")) + 1)
    folder = root / "mlruns/models" / name / number
    (folder / "artifacts/checkpoint").mkdir(parents=True)
    (folder / "artifacts/checkpoint/config.json").write_text("{}")
    tags = {champions.DRAFT_TAG: draft} if draft else {}
    client.create_model_version(name, source=folder.as_uri(), tags=tags)
    client.set_registered_model_alias(name, "challenger", number)
    if "champion" not in aliases(client, name):
        client.set_registered_model_alias(name, "champion", number)
    return number


def generations(root: Path, count: int) -> Any:
    """`count` drafts, targets and CAP models, each target with the draft of its own number."""
    for _ in range(count):
        draft = add(root, DRAFT)
        add(root, LEADER, draft)
        add(root, CAP, draft)
    client, _ = open_store(root)
    champions.follow(client)
    return client


def standing(client: Any) -> tuple[str, str, str]:
    """Champion of the leader, and both aliases of its draft."""
    draft = aliases(client, DRAFT)
    return aliases(client, LEADER)["champion"], draft["champion"], draft["draft"]


def crown(client: Any, root: Path, number: str, name: str = LEADER) -> dict[str, Any]:
    before = aliases(client, name)["champion"]
    return promote(client, root, version_of(client, name, number), before, {"reasons": []})


def test_a_champion_and_its_draft_move_together_there_and_back(root: Path) -> None:
    client = generations(root, 3)
    assert standing(client) == ("1", "1", "1")
    tags_before = {n: version_of(client, LEADER, n).tags for n in "123"}
    crown(client, root, "2")
    assert standing(client) == ("2", "2", "2")
    crown(client, root, "3")
    crown(client, root, "3", CAP)  # the draft is the leader's
    assert standing(client) == ("3", "3", "3")
    entry = roll_back(client, root, LEADER, "answers in rhyme")
    assert (entry["from"], entry["to"], entry["draft"]) == ("3", "2", "2")
    assert standing(client) == ("2", "2", "2")
    assert aliases(client, CAP)["champion"] == "3"
    roll_back(client, root, LEADER, "")
    assert standing(client) == ("1", "1", "1")
    with pytest.raises(ValueError, match="version 1 is the champion and replaced none"):
        roll_back(client, root, LEADER, "")
    assert standing(client) == ("1", "1", "1")
    moves = [(e["action"], e["model"], e["from"], e["to"]) for e in decisions.read(root)]
    assert moves == [
        ("promoted", LEADER, "1", "2"),
        ("promoted", LEADER, "2", "3"),
        ("promoted", CAP, "1", "3"),
        ("rolled_back", LEADER, "3", "2"),
        ("rolled_back", LEADER, "2", "1"),
    ]
    for number, tags in tags_before.items():  # nothing is deleted, and what was written once stays
        assert tags.items() <= version_of(client, LEADER, number).tags.items()
    assert version_of(client, LEADER, "3").tags["unmask.decision_reasons"] == "answers in rhyme"


def test_without_the_log_the_tags_know_the_champion_before(root: Path) -> None:
    client = generations(root, 2)
    crown(client, root, "2")
    (root / decisions.LOG).unlink()
    assert roll_back(client, root, LEADER, "")["to"] == "1"
    assert standing(client) == ("1", "1", "1")


@pytest.mark.parametrize("lost", [LEADER, DRAFT])
def test_a_version_whose_files_or_whose_drafts_files_are_gone_never_becomes_champion(root: Path, lost: str) -> None:
    client = generations(root, 3)
    crown(client, root, "2")
    for number in "13":
        shutil.rmtree(root / "mlruns/models" / lost / number)
    log = (root / decisions.LOG).read_bytes()
    with pytest.raises(ValueError, match=f"{lost} version 1 .* gone"):
        roll_back(client, root, LEADER, "")
    with pytest.raises(ValueError, match=f"{lost} version 3 .* gone"):
        crown(client, root, "3")
    assert standing(client) == ("2", "2", "2")
    assert (root / decisions.LOG).read_bytes() == log


def test_a_kill_between_the_two_moves_is_mended_by_whoever_comes_next(root: Path) -> None:
    client = generations(root, 2)
    client.set_registered_model_alias(LEADER, "champion", "2")  # and here it was killed
    assert standing(client) == ("2", "1", "1")
    champions.follow(client)
    assert standing(client) == ("2", "2", "2")


def test_a_judgement_against_a_champion_that_has_gone_moves_nothing(root: Path) -> None:
    client = generations(root, 3)
    stale = version_of(client, LEADER, "2")
    crown(client, root, "3")
    with pytest.raises(ValueError, match=r"judged against version 1, but version 3 has become the champion"):
        promote(client, root, stale, "1", {})
    assert standing(client) == ("3", "3", "3")


@pytest.mark.slow
def test_of_many_promotions_at_once_exactly_one_wins_and_is_the_one_on_record(root: Path) -> None:
    client = generations(root, 4)
    script = (
        "import sys; from pathlib import Path\n"
        "from model.training.tracking import open_store\n"
        "from tasks.promotion.champions import LEADER, promote, version_of\n"
        "root = Path(sys.argv[1]); client, _ = open_store(root)\n"
        "promote(client, root, version_of(client, LEADER, sys.argv[2]), '1', {})\n"
    )
    racers = [
        subprocess.Popen([sys.executable, "-c", script, str(root), n], cwd=ROOT, stderr=subprocess.DEVNULL)
        for n in "234"
    ]
    assert sorted(racer.wait() for racer in racers) == [0, 1, 1]
    (entry,) = decisions.read(root)
    assert standing(client) == (entry["to"],) * 3


def test_a_challenger_waits_until_it_was_judged_against_the_champion_that_there_is(root: Path) -> None:
    client = generations(root, 1)
    assert not is_pending(client, LEADER)  # it is the champion
    assert not is_pending(client, "unmask-nothing")
    generations(root, 2)
    assert is_pending(client, LEADER)
    record(client, version_of(client, LEADER, "3"), decisions.REFUSED, "1", ("score: worse", "tpf: lower"))
    assert not is_pending(client, LEADER)
    assert version_of(client, LEADER, "3").tags["unmask.decision_reasons"] == "score: worse; tpf: lower"
    crown(client, root, "2")
    assert is_pending(client, LEADER)  # another champion, another question
    crown(client, root, "3")
    record(client, version_of(client, LEADER, "3"), decisions.PROMOTED, "2", ())
    roll_back(client, root, LEADER, "")
    assert not is_pending(client, LEADER)  # what was taken down does not come back by itself


@pytest.mark.slow
def test_the_command_line_refuses_in_words_and_moves_when_told(root: Path) -> None:
    client = generations(root, 2)
    (root / "params.yaml").write_text("seed: 0\n")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", *arguments]
        environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
        return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)

    refused = run("tasks.rollback")
    assert (refused.returncode, "replaced none" in refused.stderr) == (2, True)
    assert "Traceback" not in refused.stderr
    assert run("tasks.promote", "--force", "because").returncode == 2  # of which model?
    forced = run("tasks.promote", "--model", LEADER, "--force", "the old one swears", "--json", "said.json")
    assert forced.returncode == 0, forced.stderr
    (entry,) = json.loads((root / "said.json").read_text())
    assert (entry["to"], entry["forced"]) == ("2", True)
    assert standing(client) == ("2", "2", "2")
    back = run("tasks.rollback", "--reason", "so does the new one")
    assert back.returncode == 0, back.stderr
    assert standing(client) == ("1", "1", "1")
    waiting = run("tasks.promote", "--waiting", "--json", "waiting.json")
    assert waiting.returncode == 0, waiting.stderr
    assert json.loads((root / "waiting.json").read_text()) == [{"model": CAP}]
