"""Reading params.yaml the way DVC reads it, and explaining one of its sections."""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

OPERATIONS = ("retrain", "serve")  # sections that belong to no stage: what is done with results, not how they are made


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars, as DVC sees them: 3e-4 is a number, and `no`, `on` and `off` are words."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.inf|\.nan)$"
    ),
    list("-+0123456789."),
)


def load_params(path: Path) -> dict[str, Any]:
    """The whole file as nested dictionaries; ValueError when it is absent or not a mapping."""
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist. Run from the root of the repository, or choose a preset: make preset NAME=tiny"
        )
    try:
        params = yaml.load(
            path.read_text(encoding="utf-8"), Loader=_Loader
        )  # a SafeLoader underneath: it builds plain values only
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not readable as YAML: {error}") from error
    if not isinstance(params, dict):
        raise ValueError(f"{path} must hold named sections (`seed: 0`, `download: …`), found {type(params).__name__}")
    return params


def check_sections(params: Mapping[str, Any], pipeline: Path) -> None:
    """ValueError for a section that no stage of `pipeline` (dvc.yaml) and no tool reads: a misspelt one would go unnoticed."""
    try:
        declared = yaml.safe_load(pipeline.read_text(encoding="utf-8")) if pipeline.is_file() else None
    except yaml.YAMLError as error:
        raise ValueError(f"{pipeline} is not readable as YAML: {error}") from error
    stages = (declared or {}).get("stages", {})
    read = (name for stage in stages.values() for name in stage.get("do", stage).get("params", []))
    if stages:
        own = {"preset", "plan", "seed", "threads", "gpu_stages", *OPERATIONS}
        known = own | {*stages, *(name.partition(".")[0] for name in read)}
        _refuse_unknown("params.yaml", "section", params, known)


def check_keys(where: str, section: Mapping[str, Any], needed: Iterable[str], optional: Iterable[str] = ()) -> None:
    """ValueError for a key of a section that its stage does not know, or one that it needs and does not find."""
    needed = set(needed)
    _refuse_unknown(where, "key", section, needed | set(optional) | {"threads"})
    if missing := sorted(needed - set(section)):
        raise ValueError(f"{where}.{missing[0]} is missing. Complete examples: presets/")


def _refuse_unknown(where: str, what: str, written: Iterable[str], known: Collection[str]) -> None:
    for name in sorted(set(map(str, written)) - set(known)):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"{where}: unknown {what} '{name}'. It may hold {', '.join(sorted(known))}.{hint}")


def explain_section(path: Path, name: str) -> str:
    """The lines of section `name` as written, with the comments directly above and inside it; empty when there is none."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    starts = [number for number, line in enumerate(lines) if re.match(rf"{re.escape(name)}\s*:", line)]
    if not starts:
        return ""
    first = last = starts[0]
    while first and lines[first - 1].startswith("#"):
        first -= 1
    while last + 1 < len(lines) and (not lines[last + 1].strip() or lines[last + 1][0].isspace()):
        last += 1
    return "\n".join(lines[first : last + 1]).rstrip()
