"""Frees DVC's cache: python -m flows.clean_cache [--cloud] (what `make clean-cache` calls)

What stays is whatever this checkout, the presets' checkouts and the registered versions name in their dvc.lock: the data, the
models and all between. The versions' lock files are kept by MLflow (tasks/register.py). `dvc gc` does the removing.
"""

import argparse
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from flows.checkout import FOLDER
from flows.stage_process import DVC
from flows.start import alone, check_params, prepare, run_command
from model.training.tracking import LINEAGE, LINEAGE_FOLDER, files_of, open_store


def main() -> int:
    """0 when the cache holds what is needed and no more, 2 when that could not be told; then nothing is removed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cloud", action="store_true", help="the same in the default DVC remote: it must serve this clone alone"
    )
    parser.add_argument(
        "--unrecorded", action="store_true", help="go on although a version has no record of what it needs"
    )
    arguments = parser.parse_args()
    return run_command("clean-cache", lambda root: clean(root, arguments.cloud, arguments.unrecorded))


def clean(root: Path, cloud: bool = False, unrecorded: bool = False) -> int:
    """Removes what nothing needs and says how much that was; 0, or ValueError, and nothing removed."""
    check_params(root)
    prepare(root)
    checkouts = sorted(path.parent for path in (root / FOLDER).glob("*/.dvc"))
    with ExitStack() as held:
        for checkout in [root, *checkouts]:
            held.enter_context(alone(checkout))  # a running stage's results are in no lock file yet
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        versions = registered(root, folder, unrecorded)
        before = size(root)
        collect(root, [*checkouts, *versions], cloud)
    print(f"clean-cache: {before / 2**20:.0f} MB before, {size(root) / 2**20:.0f} MB now; kept for {len(checkouts)} "
          f"checkouts of presets and {len(versions)} registered versions")  # fmt: skip
    return 0


def registered(root: Path, folder: Path, unrecorded: bool = False) -> list[Path]:
    """A DVC project under `folder` for every registered version, with its lock file; ValueError for one without a record."""
    client, _ = open_store(root)
    projects, missing, cache = [], [], cache_of(root)
    for version in client.search_model_versions():
        name = f"{version.name}-{version.version}"
        if f"{LINEAGE_FOLDER}/dvc.lock" not in files_of(client, version.run_id, LINEAGE_FOLDER):
            missing.append(name)
            continue
        project = folder / name / LINEAGE_FOLDER
        project.parent.mkdir()
        client.download_artifacts(version.run_id, LINEAGE_FOLDER, str(project.parent))
        (project / ".dvc").mkdir()
        # The cache, because what a folder holds is written there; without it dvc gc would keep the folder's name alone.
        (project / ".dvc/config").write_text(
            f"[core]\n    no_scm = true\n[cache]\n    dir = {cache}\n", encoding="utf-8"
        )
        projects.append(project)
    if missing and not unrecorded:
        raise ValueError(
            f"{', '.join(missing)}: registered without {', '.join(LINEAGE)}; what they need is not known, so nothing is removed. "
            "Delete those versions, or say --unrecorded: their own files in MLflow stay either way"
        )
    return projects


def collect(root: Path, projects: list[Path], cloud: bool = False) -> None:
    """Runs dvc gc for this workspace and further projects; ValueError with its words when it fails."""
    options = [*(["--cloud"] if cloud else []), *(["--projects", *map(str, projects)] if projects else [])]
    command = [*DVC, "gc", "--workspace", "--force", *options]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise ValueError(f"dvc gc ended with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")


def cache_of(root: Path) -> Path:
    """The folder of a checkout's DVC cache."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        return Path(repo.cache.local_cache_dir)


def size(root: Path) -> int:
    """Bytes in the cache."""
    return sum(file.stat().st_size for file in cache_of(root).rglob("*") if file.is_file())


if __name__ == "__main__":
    sys.exit(main())
