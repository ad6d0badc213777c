"""Rotary scaling as transformers writes it: `rope_theta` with `rope_scaling`, or both in `rope_parameters` since version 5."""

import math
from collections.abc import Mapping
from typing import Any

from model.checkpoints.families.family import Rule
from model.network.config import NetworkConfig
from model.network.rotary import RotaryScaling

_FIELDS = {
    "factor": "factor",
    "original_max_position_embeddings": "original_maximum_positions",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "attention_factor": "attention_factor",
    "low_freq_factor": "low_frequency_factor",
    "high_freq_factor": "high_frequency_factor",
}
_WRITTEN = {  # the keys that each kind has
    "linear": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor"),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
}
_ALSO = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "mscale", "mscale_all_dim", "truncate"}


def rope(default_base: float, fraction: float | None = None) -> Rule:
    """rotary_base, rotary_scaling and, where a family has it, rotary_fraction (`partial_rotary_factor`, else `fraction`)."""
    keys = ("rope_theta", "rope_scaling", "rope_parameters") + (() if fraction is None else ("partial_rotary_factor",))

    def read(values: Mapping[str, Any]) -> dict[str, Any]:
        both = dict(values.get("rope_parameters") or {})
        if values.get("rope_scaling") and both and both != values["rope_scaling"]:
            raise ValueError("rope_scaling and rope_parameters contradict each other: keep one of them")
        base = both.get("rope_theta", values.get("rope_theta", default_base))
        if "rope_theta" in both and values.get("rope_theta", base) != base:
            raise ValueError(f"rope_theta is {values['rope_theta']} and {base} in rope_parameters: keep one of them")
        scaling = read_scaling(both or values.get("rope_scaling"), values.get("max_position_embeddings"))
        fields: dict[str, Any] = {"rotary_base": float(base), "rotary_scaling": scaling}
        if fraction is not None:
            fields["rotary_fraction"] = both.get("partial_rotary_factor", values.get("partial_rotary_factor", fraction))
        return fields

    def write(config: NetworkConfig) -> dict[str, Any]:
        written = {"rope_theta": config.rotary_base, "rope_scaling": write_scaling(config.rotary_scaling)}
        return written if fraction is None else written | {"partial_rotary_factor": config.rotary_fraction}

    return Rule(keys, read, write)


def read_scaling(values: Mapping[str, Any] | None, maximum_positions: int | None) -> RotaryScaling | None:
    """The scaling of a `rope_scaling` dictionary; None for none. ValueError for a kind or key that is not supported."""
    if not values:
        return None
    kind = values.get("rope_type", values.get("type"))
    if kind in (None, "default"):
        return None
    if kind not in _WRITTEN:
        raise ValueError(f"rope_scaling type {kind!r} is not supported: it must be one of {', '.join(_WRITTEN)}")
    if unknown := sorted(set(values) - set(_FIELDS) - _ALSO):
        raise ValueError(f"unknown key(s) in rope_scaling: {', '.join(unknown)}")
    if values.get("truncate", True) is not True:
        raise ValueError("rope_scaling.truncate false is not supported")
    fields = {_FIELDS[key]: values[key] for key in _WRITTEN[kind] if values.get(key) is not None}
    if kind != "linear":
        fields.setdefault("original_maximum_positions", maximum_positions)
    if kind == "yarn" and "factor" not in fields and maximum_positions:
        fields["factor"] = maximum_positions / fields["original_maximum_positions"]
    if kind == "yarn" and "attention_factor" not in fields and values.get("mscale") and values.get("mscale_all_dim"):
        logarithm = 0.1 * math.log(fields["factor"])
        fields["attention_factor"] = (values["mscale"] * logarithm + 1) / (values["mscale_all_dim"] * logarithm + 1)
    if "factor" not in fields:
        raise ValueError("rope_scaling has no factor")
    return RotaryScaling(kind, **fields)


def write_scaling(scaling: RotaryScaling | None) -> dict[str, Any] | None:
    """The dictionary that `read_scaling` reads."""
    if scaling is None:
        return None
    values = {key: getattr(scaling, _FIELDS[key]) for key in _WRITTEN[scaling.kind]}
    return {"rope_type": scaling.kind} | {key: value for key, value in values.items() if value is not None}
