"""Switching presets never loses what a person wrote."""

from pathlib import Path

import pytest

from flows.preset import active, listing, switch


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets/smoke.yaml").write_text("# seconds\npreset: smoke\n")
    (tmp_path / "presets/tiny.yaml").write_text("# minutes\npreset: tiny\n")
    return tmp_path


def test_a_switch_is_an_exact_copy_and_can_be_taken_back(root: Path) -> None:
    switch(root, "smoke")
    assert active(root) == "smoke"
    switch(root, "tiny")
    assert (root / "params.yaml").read_bytes() == (root / "presets/tiny.yaml").read_bytes()
    assert "* tiny" in listing(root)
    assert "minutes" in listing(root)


def test_hand_edits_are_refused_and_with_force_kept(root: Path) -> None:
    switch(root, "tiny")
    edited = "# mine\npreset: tiny\nseed: 7\n"
    (root / "params.yaml").write_text(edited)
    with pytest.raises(ValueError, match="edited by hand"):
        switch(root, "smoke")
    assert (root / "params.yaml").read_text() == edited
    kept = switch(root, "smoke", force=True)
    assert kept is not None
    assert kept.read_text() == edited
    assert active(root) == "smoke"


def test_an_unknown_preset_changes_nothing_and_names_the_others(root: Path) -> None:
    switch(root, "tiny")
    with pytest.raises(ValueError, match="smoke, tiny"):
        switch(root, "tinny")
    assert active(root) == "tiny"
