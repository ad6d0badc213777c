"""The layout's promises: what may import what, that DVC sees every file a result depends on, one name in four places."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from model.registry import REGISTRY
from tasks.parameters import load_params

ROOT = Path(__file__).resolve().parents[1]
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))

# Files that start, record or name a stage and cannot change what it makes. Everything else that is imported is a dep.
EXEMPT = {
    "model/atomic.py": "writes what it is given, and waits",
    "model/registry.py": "only maps names to files; the files it names for a stage are deps",
    "model/training/file_tracker.py": "records",
    "model/training/logged_models.py": "records",
    "model/training/mlflow_tracker.py": "records",
    "model/training/pipeline_run.py": "records",
    "model/training/spool.py": "records",
    "model/training/tracker.py": "records",
    "model/training/tracking.py": "records",
    "tasks/environment.py": "telemetry switches; the number of threads it sets is a parameter",
    "tasks/fingerprint.py": "names the work folder",
    "tasks/launch.py": "starts a stage's processes; their number and kind are parameters",
    "tasks/parameters.py": "reads params.yaml, whose values are in `params`",
    "tasks/stage.py": "starts, records and publishes",
}
FLOORS = {
    "model/atomic": 0, "model/registry": 0, "model/shapes": 0, "model/hiding": 0,
    "model/curricula": 1,
    "model/network": 1, "model/text": 1, "model/corpora": 1, "model/noise": 1,
    "model/objectives": 2, "model/samplers": 2, "model/checkpoints": 2,
    "model/benchmarks": 3, "model/training": 3, "model/hugging_face": 3,
    "model/apps": 4,
    "tasks": 5,  # the chat is a command over model/apps
    "flows": 6,
}  # fmt: skip
FENCES = {  # package -> the only places that may import it
    "prefect": ("flows/",),
    "mlflow": (
        "model/training/tracking.py",
        "model/training/mlflow_tracker.py",
        "model/training/logged_models.py",
        "tasks/register.py",
        "model/apps/",
    ),
    "great_expectations": ("model/corpora/", "tasks/validate.py"),
    "fastapi": ("tasks/serving/",),
    "uvicorn": ("tasks/serve.py",),
}
NEVER_IN_FLOWS = ("torch", "transformers", "mlflow")


def sources(*folders: str) -> list[str]:
    found = (path for folder in folders for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


@cache
def imported_modules(file: str) -> frozenset[str]:
    """Every module that running the file may import, inside functions too, but not for type checkers only."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return frozenset(_imports(tree))


def _imports(node: ast.AST) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute here"
            yield child.module or ""
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        else:
            yield from _imports(child)


@cache
def file_of(module: str) -> str | None:
    """Path of a module of this repository; None for other packages, names inside a module and empty __init__ files."""
    base = module.replace(".", "/")
    for candidate in (f"{base}.py", f"{base}/__init__.py"):
        if (ROOT / candidate).is_file() and (ROOT / candidate).read_text(encoding="utf-8").strip():
            return candidate
    return None


@cache
def closure(file: str) -> frozenset[str]:
    """The file and everything of this repository that it imports, transitively, without what is exempt."""
    seen: set[str] = set()
    waiting = [file]
    while waiting:
        current = waiting.pop()
        if current in seen or current in EXEMPT:
            continue
        seen.add(current)
        waiting += [path for module in imported_modules(current) if (path := file_of(module))]
    return frozenset(seen)


@cache
def kinds_resolved_in(files: frozenset[str]) -> set[str]:
    """The registry kinds that are looked up by name in these files."""
    calls = (node for file in files for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))))
    return {
        call.args[0].value
        for call in calls
        if isinstance(call, ast.Call)
        and getattr(call.func, "id", None) == "resolve"
        and call.args
        and isinstance(call.args[0], ast.Constant)
    }


def words(value: Any) -> set[str]:
    """Every text value in nested parameters."""
    if isinstance(value, dict):
        return set().union(*map(words, value.values()))
    if isinstance(value, list):
        return set().union(*map(words, value))
    return {value} if isinstance(value, str) else set()


class Pipeline:
    """dvc.yaml as DVC reads it with one preset."""

    def __init__(self, folder: Path):
        from dvc.repo import Repo

        with Repo(str(folder)) as repo:
            graph = repo.index.graph
            self.deps = {stage.name: [dep.def_path for dep in stage.deps] for stage in graph}
            self.params = {
                stage.name: {name for dep in stage.deps for name in getattr(dep, "params", [])} for stage in graph
            }
            self.upstream = {stage.name: {other.name for other in graph.successors(stage)} for stage in graph}

    def names_for(self, stage: str, names: set[str], params: dict[str, Any]) -> set[str]:
        """Which of `names` the stage's own sections choose, or else those of the nearest stages before it that choose any."""
        level = {stage}
        while level:
            sections = set().union(*(self.params[each] for each in level))
            chosen = words([params.get(section) for section in sections]) & names
            if chosen:
                return chosen
            level = set().union(*(self.upstream[each] for each in level))
        return set()


@pytest.fixture(scope="module", params=PRESETS, ids=lambda path: path.stem)
def preset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Pipeline]:
    folder = tmp_path_factory.mktemp("dvc")
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text((ROOT / ".dvc/config").read_text())
    (folder / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    everything = request.param.read_text().replace(
        "models: []  #", "models: [finetune_diffusion]  #"
    )  # optional stages too
    (folder / "params.yaml").write_text(everything)
    return load_params(request.param), Pipeline(folder)


def test_every_file_a_result_depends_on_is_a_dep_of_its_stage(preset: tuple[dict[str, Any], Pipeline]) -> None:
    params, pipeline = preset
    missing: dict[str, list[str]] = {}
    for stage, deps in pipeline.deps.items():
        needed = closure(f"tasks/{stage.partition('@')[0]}.py")
        for kind in kinds_resolved_in(needed):
            for name in pipeline.names_for(stage, set(REGISTRY[kind]), params):
                needed |= closure(file_of(REGISTRY[kind][name].partition(":")[0]) or "")
        absent = {file for file in needed if not any(file == dep or file.startswith(f"{dep}/") for dep in deps)}
        if absent:
            missing[stage] = sorted(absent)
    lines = [f"{stage}:\n" + "\n".join(f"      - {file}" for file in files) for stage, files in missing.items()]
    assert not missing, "add these to `deps` in dvc.yaml:\n" + "\n".join(lines)


def test_deps_name_no_file_that_does_not_exist(preset: tuple[dict[str, Any], Pipeline]) -> None:
    _, pipeline = preset
    code = {(stage, dep) for stage, deps in pipeline.deps.items() for dep in deps if dep.endswith((".py", ".json"))}
    made = {(stage, dep) for stage, dep in code if dep.startswith("data/") and not dep.startswith("data/suites")}
    assert not {(stage, dep) for stage, dep in code - made if not (ROOT / dep).exists()}


def test_a_stage_has_one_name_in_tasks_dvc_and_params(preset: tuple[dict[str, Any], Pipeline]) -> None:
    params, pipeline = preset
    stages = {stage.partition("@")[0] for stage in pipeline.deps}
    runnable = {
        file for file in sources("tasks") if "run_stage(" in (ROOT / file).read_text() and file != "tasks/stage.py"
    }
    optional = {name for name, declared in declared_stages().items() if isinstance(declared.get("foreach"), str)}
    assert stages | optional == {Path(file).stem for file in runnable}
    assert optional <= set(params), "a preset says which instances of an optional stage there are, even if none"
    assert stages <= set(params), f"the preset has no section for {sorted(stages - set(params))}"
    for name in stages:
        assert f'run_stage({{}}, "{name}")'.partition("{}")[2] in (ROOT / f"tasks/{name}.py").read_text()


def declared_stages() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def test_every_stage_is_started_by_its_own_command() -> None:
    for name, declared in declared_stages().items():
        command = declared.get("do", declared)["cmd"]
        named = "${key}" if isinstance(declared.get("foreach"), dict) else "${item}"
        assert command == f"python -m tasks.{name}" + (f" --instance {named}" if "foreach" in declared else "")


def room_of(file: str) -> str:
    parts = file.removesuffix(".py").split("/")
    return "/".join(parts[:2]) if parts[0] == "model" else parts[0]


def test_a_room_imports_only_from_lower_floors() -> None:
    wrong = []
    for file in sources("model", "tasks", "flows"):
        room = room_of(file)
        if file == "model/__init__.py":
            continue
        assert room in FLOORS, f"{file}: give {room} a floor"
        for target in filter(None, map(file_of, imported_modules(file))):
            if room_of(target) != room and FLOORS[room_of(target)] >= FLOORS[room]:
                wrong.append(f"{file} (floor {FLOORS[room]}) imports {target} (floor {FLOORS[room_of(target)]})")
    assert not wrong, "\n".join(wrong)


def test_fenced_packages_stay_behind_their_fence() -> None:
    wrong = []
    for file in sources("model", "tasks", "flows"):
        packages = {module.partition(".")[0] for module in imported_modules(file)}
        wrong += [f"{file} imports {name}" for name in packages & set(FENCES) if not file.startswith(FENCES[name])]
        wrong += [f"{file} imports {name}" for name in packages & set(NEVER_IN_FLOWS) if file.startswith("flows/")]
    assert not wrong, "\n".join(wrong)


def test_importing_everything_writes_nothing_and_changes_no_environment(tmp_path: Path) -> None:
    modules = [
        file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in sources("model", "tasks")
    ]
    modules = [module for module in modules if not module.startswith("model.apps")]  # runnable as models from code
    script = (
        "import importlib, os, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import torch, transformers\n"  # what other packages do at import is theirs
        "before = dict(os.environ)\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "theirs = {'HF_XET_HIGH_PERFORMANCE', 'TORCHINDUCTOR_CACHE_DIR'}  # lm_eval, torch\n"
        "changed = {k for k in os.environ if os.environ.get(k) != before.get(k)} - theirs\n"
        "assert not changed, changed\n"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert not list(tmp_path.iterdir())
