"""Puts the champion before this one back, its draft with it: python -m tasks.rollback

The version that is taken down stays in the registry, and is not promoted again unless a person asks for it (tasks.promote).
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from model.training.tracking import open_store
from tasks.promotion import champions
from tasks.promotion.program import run_program
from tasks.promotion.settings import TARGETS


def rollback(root: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The log entry of the move. ValueError, and nothing moved, where no champion was replaced or its files are gone."""
    client, _ = open_store(root)
    entry = champions.roll_back(client, root, arguments.model, arguments.reason)
    print(f"rollback: {entry['model']} version {entry['to']} is the champion again; it was version {entry['from']}")
    return [entry]


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=TARGETS, default=TARGETS[0], help=f"default {TARGETS[0]}")
    parser.add_argument("--reason", default="", help="goes on record")


def main() -> int:
    """0 when the champion before is back, 2 when there is none."""
    return run_program("rollback", __doc__, rollback, _arguments)


if __name__ == "__main__":
    sys.exit(main())
