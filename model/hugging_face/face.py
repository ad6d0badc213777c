"""Importing this module teaches `transformers` the families: AutoModelForCausalLM.from_pretrained(folder), no remote code.

    import model.hugging_face.face
    AutoModelForCausalLM.from_pretrained("data/models/tune_cap")  # or LLaDA, LLaDA2, minimind, Nano-LLaDA folders as they stand

Weights go through this project's own reader: straight to device and dtype, and everything that does not fit is named.
llama, qwen2 and qwen3 keep transformers' own classes.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from model.checkpoints.store import export_checkpoint, load_checkpoint, save_checkpoint
from model.hugging_face.foreign import device_of, dtype_of
from model.hugging_face.modeling import StoredConfig, UnmaskConfig, UnmaskForCausalLM

FOREIGN_TYPES = ("llada", "llada2_moe", "llada2_moe_veomni", "minimind")
READ_EVERYTHING = ("llada2_moe", "llada2_moe_veomni")  # their public code's reading when it is given no mask


class FaceModel(UnmaskForCausalLM):
    """A model read and written by model.checkpoints; `family` is None for this project's own layout."""

    family: str | None = None

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        config: StoredConfig | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device_map: str | torch.device | dict[str, Any] | None = None,
        **unused: Any,
    ) -> "FaceModel":
        """The model of a folder or hub id; ValueError that names what does not fit. `dtype`: None is float32."""
        checkpoint = load_checkpoint(
            pretrained_model_name_or_path, device_of(device_map), dtype_of(dtype or torch_dtype)
        )
        if config is None:
            config = cls.config_class.from_pretrained(checkpoint.folder)
        config.describe(checkpoint.config)
        model = cls(config, checkpoint.network)
        model.family = checkpoint.family
        model.name_or_path = str(pretrained_model_name_or_path)
        return model.eval()

    def save_pretrained(self, save_directory: str | Path, **unused: Any) -> None:
        """Writes the weights and the configuration in the layout that the model was read in; tokenizers save themselves."""
        folder, network = Path(save_directory), self.network
        if self.family is None:
            save_checkpoint(folder, network, network.config, folder)
        else:
            export_checkpoint(folder, network, network.config, self.family, folder)


def _classes(model_type: str) -> tuple[type[StoredConfig], type[FaceModel]]:
    name = "".join(part.capitalize() for part in model_type.split("_"))
    # transformers makes every configuration class a dataclass, with an __init__ of its own where none stands in the class itself
    values = {"model_type": model_type, "__init__": StoredConfig.__init__, "__module__": __name__}
    config = type(f"{name}Config", (StoredConfig,), values)
    values = {"config_class": config, "reads_everything": model_type in READ_EVERYTHING, "__module__": __name__}
    return config, type(f"{name}ForCausalLM", (FaceModel,), values)


def register() -> None:
    """Makes the Auto classes know every family; a second time changes nothing."""
    own = type("UnmaskForCausalLM", (FaceModel,), {"config_class": UnmaskConfig, "__module__": __name__})
    pairs = [(UnmaskConfig, own), *map(_classes, FOREIGN_TYPES)]
    for config, model in pairs:
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForCausalLM.register(config, model, exist_ok=True)


register()
