"""Writes requirements/cpu.lock and cuda.lock from pyproject.toml: python requirements/lock.py (what `make lock` calls).

Resolves for every Python from 3.11 on and every platform at once, from package metadata only (nothing large is downloaded),
preferring the versions that are installed here, which are the tested ones. Needs `uv` on the PATH.
"""

import re
import subprocess
import sys
import tempfile
from importlib.metadata import distributions
from pathlib import Path

HERE = Path(__file__).resolve().parent
CUDA_ONLY = re.compile(r"(nvidia|cuda)-|triton==")


def main() -> None:
    """Both lock files; the CPU one is the same without what only a CUDA build of torch needs."""
    installed = sorted({f"{each.name}=={each.version.partition('+')[0]}" for each in distributions() if each.name})
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "installed.txt"
        wanted.write_text("\n".join(installed) + "\n", encoding="utf-8")
        command = [
            "uv",
            "pip",
            "compile",
            "--quiet",
            "--universal",
            "--python-version",
            "3.11",
            "--constraint",
            str(wanted),
        ]
        command += ["--extra", "dev", "--no-header", "--no-annotate", str(HERE.parent / "pyproject.toml")]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    note = "# Made by `make lock` from pyproject.toml, for Python 3.11 and newer; install with `make env`.\n"
    (HERE / "cuda.lock").write_text(note + "\n".join(lines) + "\n", encoding="utf-8")
    kept = [line for line in lines if not CUDA_ONLY.match(line)]
    (HERE / "cpu.lock").write_text(note + "\n".join(kept) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
