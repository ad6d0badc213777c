"""Every name that params.yaml may choose, and the code behind it.

A choice is a name, never a switch. `resolve("objective", "masked_diffusion")` imports only the module it needs, so that a stage
which downloads text never pays for torch. Adding a method is one new file and one line here.
"""

import difflib
from importlib import import_module
from typing import Any

REGISTRY: dict[str, dict[str, str]] = {
    "corpus": {
        "toy_world": "model.corpora.toy_world_corpus:ToyWorldCorpus",
        "files": "model.corpora.files:FilesCorpus",
        "hub": "model.corpora.hub:HubCorpus",
    },
    "family": {  # public layouts of checkpoints; config.json tells which one a folder has
        "llada": "model.checkpoints.families.llada:FAMILY",
        "llada2_moe": "model.checkpoints.families.llada2_moe:FAMILY",
        "llada2_moe_merged": "model.checkpoints.families.llada2_moe:MERGED",
        "minimind": "model.checkpoints.families.minimind:FAMILY",
        "nano_llada": "model.checkpoints.families.minimind:NANO_LLADA",
        "llama": "model.checkpoints.families.llama:FAMILY",
        "qwen2": "model.checkpoints.families.qwen2:FAMILY",
        "qwen3": "model.checkpoints.families.qwen3:FAMILY",
    },
    "objective": {
        "next_token": "model.objectives.next_token:NextToken",
        "masked_diffusion": "model.objectives.masked_diffusion:MaskedDiffusion",
        "block_diffusion": "model.objectives.block_diffusion:BlockDiffusion",
        "confidence": "model.objectives.confidence:Confidence",
        "match_teacher": "model.objectives.match_teacher:MatchTeacher",
    },
    "policy": {
        "fixed_steps": "model.samplers.policies:FixedSteps",
        "threshold": "model.samplers.policies:Threshold",
        "hybrid": "model.samplers.policies:Hybrid",
        "factor": "model.samplers.policies:Factor",
        "entropy_threshold": "model.samplers.policies:EntropyThreshold",
        "uniform_time": "model.samplers.policies:UniformTime",
        "left_to_right": "model.samplers.policies:LeftToRight",
        "token_editing": "model.samplers.token_editing:TokenEditing",
    },
}


def names(kind: str) -> list[str]:
    """All names of one kind, sorted."""
    return sorted(REGISTRY[kind])


def resolve(kind: str, name: str) -> Any:
    """The object registered as `name`; ValueError that lists the choices (and the nearest one) for an unknown name."""
    known = REGISTRY[kind]
    if name not in known:
        close = difflib.get_close_matches(str(name), known, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise ValueError(f"unknown {kind} '{name}': it must be one of {', '.join(sorted(known))}.{hint}")
    module, attribute = known[name].split(":")
    return getattr(import_module(module), attribute)


def module_file(kind: str, name: str) -> str:
    """Path, relative to the repository root, of the file that holds a registered name (what a DVC stage lists in `deps`)."""
    return REGISTRY[kind][name].split(":")[0].replace(".", "/") + ".py"
