"""How a program about champions starts and ends: arguments, one message for what a person can mend, its entries as a file."""

import argparse
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model.atomic import write_json
from tasks.environment import quiet
from tasks.parameters import explain_section
from tasks.promotion.settings import SECTION
from tasks.stage import exit_code_of, stop_on_signal


def run_program(
    name: str,
    description: str | None,
    work: Callable[[Path, argparse.Namespace], Any],
    add_arguments: Callable[[argparse.ArgumentParser], None],
) -> int:
    """Runs `work` in the checkout that is the current folder; what it returns goes to --json. The codes are run_stage's."""
    quiet()
    root = Path.cwd()
    parser = argparse.ArgumentParser(
        prog=f"python -m tasks.{name}",
        description=description,
        epilog=f"Settings in params.yaml:\n\n{explain_section(root / 'params.yaml', SECTION)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found to this file, too")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, stop_on_signal)

    def run() -> None:
        found = work(root, arguments)
        if arguments.json:
            write_json(arguments.json, found)

    return exit_code_of(run, name)
