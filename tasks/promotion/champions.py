"""Champions in the registry: who is one, who was one before, and the only code that moves them.

A target's version names its draft (tag unmask.draft_version), so that moving one alias moves both; `champion` and `draft` of the
draft's own name follow the champion of unmask-target. Nothing here deletes a version or a tag.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.apps.registered import checkpoint_of_version
from model.atomic import locked
from tasks.promotion import decisions

CHAMPION, CHALLENGER, DRAFT_ALIAS = "champion", "challenger", "draft"
DRAFT, LEADER = "unmask-draft", "unmask-target"  # the draft was distilled from the leader
DRAFT_TAG, BEFORE_TAG, AGAINST_TAG, DECISION_TAG, REASONS_TAG = (
    "unmask.draft_version", "unmask.champion_before", "unmask.judged_against", "unmask.decision", "unmask.decision_reasons",
)  # fmt: skip
LONGEST_TAG = 4000


@dataclass(frozen=True)
class Version:
    """A registered version with its tags."""

    name: str
    number: str
    tags: dict[str, str]
    run: str

    @property
    def title(self) -> str:
        return f"{self.name} version {self.number}"


def aliases(client: Any, name: str) -> dict[str, str]:
    """Alias -> version of a registered name; empty when there is no such name."""
    found = client.search_registered_models(f"name = '{name}'")
    return {alias: str(version) for alias, version in found[0].aliases.items()} if found else {}


def version_of(client: Any, name: str, number: str) -> Version:
    """ValueError for a version that the registry does not have."""
    known = {str(each.version): each for each in client.search_model_versions(f"name = '{name}'")}
    if number not in known:
        raise ValueError(f"the registry has no {name} version {number}; it has {', '.join(sorted(known)) or 'none'}")
    found = known[number]
    return Version(name, number, dict(found.tags), found.run_id or "")


def is_pending(client: Any, name: str) -> bool:
    """Whether the challenger has not been judged against the champion that there is."""
    named = aliases(client, name)
    champion, challenger = named.get(CHAMPION), named.get(CHALLENGER)
    if not champion or not challenger or champion == challenger:
        return False
    return version_of(client, name, challenger).tags.get(AGAINST_TAG) != champion


def record(client: Any, version: Version, action: str, against: str, reasons: tuple[str, ...]) -> None:
    """Writes a decision on the judged version."""
    text = "; ".join(reasons)
    tags = {DECISION_TAG: action, REASONS_TAG: text[:LONGEST_TAG] or "none", AGAINST_TAG: against}
    for tag, value in tags.items():
        client.set_model_version_tag(version.name, version.number, tag, value)


def crown(client: Any, root: Path, name: str, number: str) -> None:
    """Makes a version the champion, its draft with it. ValueError, and nothing moved, when files of the two are not there."""
    version = version_of(client, name, number)
    checkpoint_of_version(root, name, number)
    if draft := version.tags.get(DRAFT_TAG):
        checkpoint_of_version(root, DRAFT, draft)
    client.set_registered_model_alias(name, CHAMPION, number)
    follow(client)


def follow(client: Any) -> None:
    """Brings the draft's aliases to the draft of the leader's champion; a kill between the two moves is mended here."""
    leader = aliases(client, LEADER).get(CHAMPION)
    draft = version_of(client, LEADER, leader).tags.get(DRAFT_TAG) if leader else None
    if not draft:
        return
    named = aliases(client, DRAFT)
    for alias in (CHAMPION, DRAFT_ALIAS):
        if named.get(alias) != draft:
            client.set_registered_model_alias(DRAFT, alias, draft)


@contextmanager
def moving(root: Path) -> Iterator[None]:
    """One move at a time on this machine."""
    with locked(root / "mlruns" / "champions.lock"):
        yield


def promote(client: Any, root: Path, version: Version, before: str, entry: dict[str, Any]) -> dict[str, Any]:
    """Puts the version in the place of champion `before`, and says so in the log; ValueError when that is champion no more."""
    with moving(root):
        current = aliases(client, version.name).get(CHAMPION)
        if current != before:
            raise ValueError(
                f"{version.title} was judged against version {before}, but version {current} has become the champion "
                "meanwhile: judge again (make promote)"
            )
        client.set_model_version_tag(version.name, version.number, BEFORE_TAG, before)
        crown(client, root, version.name, version.number)
        move = {"action": decisions.PROMOTED, "model": version.name, "from": before, "to": version.number}
        return decisions.append(root, {**entry, **move, "draft": version.tags.get(DRAFT_TAG, "")})


def roll_back(client: Any, root: Path, name: str, reason: str) -> dict[str, Any]:
    """Puts the champion before this one back; ValueError when there is none, or its files are gone."""
    with moving(root):
        current = aliases(client, name).get(CHAMPION)
        if not current:
            raise ValueError(f"{name} has no champion: `make run` trains and registers one")
        version = version_of(client, name, current)
        before = decisions.champion_before(decisions.read(root), name, current) or version.tags.get(BEFORE_TAG)
        if not before:
            raise ValueError(f"{version.title} is the champion and replaced none, so there is nothing to go back to")
        crown(client, root, name, before)
        draft = version_of(client, name, before).tags.get(DRAFT_TAG, "")
        move = {"action": decisions.ROLLED_BACK, "model": name, "from": current, "to": before, "draft": draft}
        entry = decisions.append(root, {**move, "reasons": [reason] if reason else []})
    client.set_model_version_tag(name, current, DECISION_TAG, decisions.ROLLED_BACK)
    client.set_model_version_tag(name, current, REASONS_TAG, reason[:LONGEST_TAG] or "none given")
    return entry
