"""Reading and writing a model in a public family's layout behind the interface of `transformers`.

The base of the classes that an export's modelling file defines (model/hugging_face/bundle.py): like modeling.py, this file and
what it imports go into that file.
"""

import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers.modeling_outputs import BaseModelOutput

from model.checkpoints.families.family import Family
from model.checkpoints.network_weights import empty_network, fill, store
from model.checkpoints.source import checkpoint_folder
from model.checkpoints.weight_files import MAXIMUM_SHARD_BYTES, WeightFiles, weight_files
from model.hugging_face.modeling import StoredConfig, UnmaskForCausalLM
from model.network.config import NetworkConfig


class FamilyConfig(StoredConfig):
    """A family's config.json as it stands; `sizes` are what it says in this project's words."""

    sizes: ClassVar[dict[str, Any]]

    def network(self) -> NetworkConfig:
        """The network's sizes and choices."""
        return NetworkConfig.from_dict(self.sizes)


class FamilyForCausalLM(UnmaskForCausalLM):
    """Logits, hidden states and LLaDA2's `generate`, from and to files with the family's tensor names."""

    family: ClassVar[Family]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        config: FamilyConfig | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device_map: str | torch.device | dict[str, Any] | None = None,
        **unused: Any,
    ) -> "FamilyForCausalLM":
        """The model of a folder or hub id; ValueError that names what does not fit. `dtype`: None is float32."""
        folder = checkpoint_folder(pretrained_model_name_or_path)
        if config is None:
            config = cls.config_class.from_pretrained(folder)
        sizes = config.network()
        config.describe(sizes)
        network = empty_network(sizes, device_of(device_map), dtype_of(dtype or torch_dtype) or torch.float32)
        fill(network, sizes, WeightFiles(weight_files(folder)), cls.family, folder)
        model = cls(config, network)
        model.name_or_path = str(pretrained_model_name_or_path)
        return model.eval()

    def save_pretrained(self, save_directory: str | Path, **unused: Any) -> None:
        """Weights and configuration in the family's layout again, and the modelling files beside them."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        store(self.network, self.config.network(), self.family, folder, MAXIMUM_SHARD_BYTES)
        (folder / "config.json").write_text(json.dumps(self.config.to_dict(), indent=2, sort_keys=True) + "\n")
        for name, _, defined in (target.partition(".") for target in self.config.auto_map.values()):
            is_this = name == Path(__file__).stem
            text = Path(__file__).read_text() if is_this else f"from .{Path(__file__).stem} import {defined}\n"
            (folder / f"{name}.py").write_text(text)


class FamilyModel(FamilyForCausalLM):
    """The same without the head: `.last_hidden_state`."""

    def forward(self, *arguments: Any, **named: Any) -> BaseModelOutput:
        """The normalised final states."""
        found = super().forward(*arguments, **named | {"output_hidden_states": True, "return_dict": True})
        return BaseModelOutput(last_hidden_state=found.hidden_states[-1], hidden_states=found.hidden_states)


def dtype_of(value: torch.dtype | str | None) -> torch.dtype | None:
    """A dtype or its name; None, for float32, where nothing or `auto` is said."""
    if value == "auto":
        return None
    return getattr(torch, value) if isinstance(value, str) else value


def device_of(value: str | torch.device | dict[str, Any] | None) -> str | torch.device:
    """The one device that a device_map names; ValueError for several."""
    if isinstance(value, dict):
        if len(value) != 1:
            raise ValueError(f"device_map {value} spreads a model over devices: this face puts it on one")
        value = next(iter(value.values()))
    if value == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return value or "cpu"
