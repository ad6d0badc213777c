"""Makes the environment from a lock file: python requirements/install.py --venv .venv --lock requirements/cpu.lock

Standard library only. torch comes first, from its own index when that answers (its CPU wheels are a tenth of the size and
carry a local version, which pip prefers), else from wherever pip finds the same version.
"""

import argparse
import subprocess
import sys
import venv
from pathlib import Path

INDEX_SECONDS = 10


def main() -> int:
    """0 when everything of the lock is installed and torch can be imported."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, required=True)
    parser.add_argument("--lock", type=Path, required=True)
    parser.add_argument("--torch-index", default="", help="an extra package index that has torch; empty for none")
    arguments = parser.parse_args()
    if sys.version_info < (3, 11):  # noqa: UP036 (whatever Python starts this, it should say so)
        print(
            f"install: Python {sys.version.split()[0]} is too old; 3.11 or newer: make env PYTHON=python3.12",
            file=sys.stderr,
        )
        return 2
    python = arguments.venv / "bin" / "python"
    if not python.exists():
        venv.create(arguments.venv, with_pip=True)
    lines = arguments.lock.read_text(encoding="utf-8").splitlines()
    torch = next(line for line in lines if line.startswith("torch=="))
    rest = [line for line in lines if line and not line.startswith(("#", "torch=="))]
    pip = [str(python), "-m", "pip", "install", "-qq", "--no-deps", "--disable-pip-version-check"]
    print(f"install: {len(rest) + 1} packages of {arguments.lock} into {arguments.venv} (some minutes)", flush=True)
    if not _install_from_index(pip, torch, arguments.torch_index):
        subprocess.run([*pip, torch], check=True)
    subprocess.run([*pip, "-r", "/dev/stdin"], input="\n".join(rest), text=True, check=True)
    if subprocess.run([str(python), "-c", "import torch"], check=False, capture_output=True).returncode:
        print("install: this torch was built for CUDA and needs its libraries; fetching them, too", flush=True)
        subprocess.run([*(part for part in pip if part != "--no-deps"), torch], check=True)
    return 0


def _install_from_index(pip: list[str], torch: str, index: str) -> bool:
    """True when torch was installed with the extra index in view; an index that does not answer costs seconds, no more."""
    if not index:
        return False
    extra = ["--extra-index-url", index, "--retries", "0", "--timeout", str(INDEX_SECONDS)]
    return subprocess.run([*pip, *extra, torch], check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
