"""Makes a preset the active one: python -m flows.preset NAME (what `make preset NAME=...` calls); without NAME lists them.

params.yaml is a copy of one file of presets/. A params.yaml that was edited by hand is not overwritten without --force,
and then kept beside it.
"""

import argparse
import os
import sys
import time
from pathlib import Path

PRESETS, ACTIVE = "presets", "params.yaml"


def main() -> int:
    """0 when done, 2 when there is nothing of that name or hand edits would be lost."""
    parser = argparse.ArgumentParser(prog="python -m flows.preset", description="Switches between complete settings.")
    parser.add_argument("name", nargs="?", default="", help="a file of presets/, without .yaml")
    parser.add_argument("--force", action="store_true", help="replace a hand-edited params.yaml (a copy is kept)")
    arguments = parser.parse_args()
    root = Path.cwd()
    try:
        if not arguments.name:
            print(listing(root))
            return 0
        kept = switch(root, arguments.name, arguments.force)
    except (ValueError, OSError) as error:
        print(f"preset: {error}", file=sys.stderr)
        return 2
    if kept:
        print(f"preset: the edited params.yaml is kept as {kept.name}")
    print(f"preset: {arguments.name} is active; `make run` does whatever it changes")
    return 0


def available(root: Path) -> list[str]:
    """Names of the presets, sorted."""
    return sorted(path.stem for path in (root / PRESETS).glob("*.yaml"))


def active(root: Path) -> str | None:
    """The preset that params.yaml is an exact copy of; None when it is absent or has been edited."""
    current = _content(root / ACTIVE)
    return next((name for name in available(root) if _content(root / PRESETS / f"{name}.yaml") == current), None)


def listing(root: Path) -> str:
    """One preset a line with its first comment, the active one marked."""
    current = active(root)
    lines = []
    for name in available(root):
        first = (root / PRESETS / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0]
        lines.append(
            f"{'*' if name == current else ' '} {name:20} {first.lstrip('# ') if first.startswith('#') else ''}"
        )
    if current is None and (root / ACTIVE).is_file():
        lines.append("* params.yaml has been edited by hand")
    return "\n".join(lines)


def switch(root: Path, name: str, force: bool = False) -> Path | None:
    """Copies the preset over params.yaml in one rename; returns where a replaced, edited one is kept."""
    if name not in available(root):
        raise ValueError(f"there is no preset {name!r}; there are {', '.join(available(root))}")
    file, kept = root / ACTIVE, None
    edited = file.is_file() and active(root) is None
    if edited and not force:
        raise ValueError(
            "params.yaml has been edited by hand, and the edits would be lost. Save it under another name in presets/, "
            "or repeat with --force (make preset NAME=... FORCE=1), which keeps a copy"
        )
    if edited:
        kept = root / f"{ACTIVE}.saved-{time.strftime('%Y%m%d-%H%M%S')}"
        os.replace(file, kept)
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_bytes(_content(root / PRESETS / f"{name}.yaml"))
    os.replace(unfinished, file)
    return kept


def _content(file: Path) -> bytes:
    return file.read_bytes() if file.is_file() else b""


if __name__ == "__main__":
    sys.exit(main())
