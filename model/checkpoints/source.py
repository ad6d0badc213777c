"""Where a checkpoint is: a folder, or a model of the Hugging Face hub, which is then downloaded once."""

import re
from pathlib import Path

# Everything a checkpoint needs and nothing that could run: no .py, no pickles.
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "config.json", "tokenizer.json", "tokenizer_config.json",
             "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "vocab.json", "merges.txt",
             "generation_config.json"]  # fmt: skip


def checkpoint_folder(source: Path | str) -> Path:
    """The local folder of `source`: itself when it exists, else the hub's `owner/name` (or `owner/name@revision`).

    ValueError when it is neither a folder here nor looks like a model of the hub, or the hub cannot give it.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    name, _, revision = str(source).partition("@")
    if not re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", name) or Path(name.partition("/")[0]).is_dir():
        raise ValueError(
            f"{source} is not a checkpoint: no such folder here, and not the name of a model of the Hugging Face hub (owner/name)"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{source} is no folder here, and the Hugging Face hub cannot give it ({reason}). Check the name, the network "
            "connection and, for a gated model, `hf auth login`"
        ) from error
