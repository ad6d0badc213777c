"""The files that hold a checkpoint's tensors: safetensors, or a pickle that may hold nothing but tensors; one file or shards.

Headers are read first and tensors one by one, so that memory holds the network and a shard at most.
"""

import json
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

MAXIMUM_SHARD_BYTES = 5_000_000_000
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLES = ("model.safetensors", "pytorch_model.bin")
PICKLES = (".bin", ".pt", ".pth")
_WRAPPERS = ("model_state_dict", "model")  # keys under which trainers keep the state dict
_READABLE = {"F64", "F32", "F16", "BF16"}


class WeightFiles:
    """Tensors by name: `shape` and `dtype` come from the headers, `read` gives one tensor.

    One file is open at a time, so that no more than one shard stays mapped into memory.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self.files: dict[str, _Safetensors | _Pickle] = {}
        self.repeated: list[str] = []
        self.current: _Safetensors | _Pickle | None = None
        for path in paths:
            file = _Pickle(path) if path.suffix in PICKLES else _Safetensors(path)
            self.repeated += sorted(self.files.keys() & file.header.keys())
            self.files |= dict.fromkeys(file.header, file)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a stored tensor."""
        return self.files[name].header[name][0]

    def dtype(self, name: str) -> str:
        """Dtype of a stored tensor in safetensors' words (F32, BF16, ...)."""
        return self.files[name].header[name][1]

    def is_readable(self, name: str) -> bool:
        """Whether it is a plain floating-point tensor (not quantised)."""
        return self.dtype(name) in _READABLE

    def read(self, name: str) -> Tensor:
        """One stored tensor, on the CPU."""
        if self.current not in (None, self.files[name]):
            self.current.close()
        self.current = self.files[name]
        return self.current.read(name)


class _Safetensors:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.opened: Any = None
        names = self._open().keys()
        slices = {name: self.opened.get_slice(name) for name in names}
        self.header = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
        self.close()

    def _open(self) -> Any:
        try:
            self.opened = self.opened or safe_open(self.path, "pt")
        except (SafetensorError, OSError) as error:
            raise _unreadable(self.path, error) from error
        return self.opened

    def read(self, name: str) -> Tensor:
        return self._open().get_tensor(name)

    def close(self) -> None:
        self.opened = None


class _Pickle:
    """A torch file, read with weights_only: it can hold tensors and run nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, Tensor] | None = None
        self.header = {name: (tuple(value.shape), _dtype_name(value)) for name, value in self._open().items()}
        self.close()

    def _open(self) -> dict[str, Tensor]:
        if self.tensors is None:
            self.tensors = _state_dict(self._load(), self.path)
        return self.tensors

    def _load(self) -> Any:
        try:
            return torch.load(self.path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(self.path))
        except UnpicklingError as error:
            raise ValueError(
                f"{self.path} is refused: it is damaged, or it holds more than tensors and loading it would run what it brings "
                "along. Save its state dict as safetensors on a machine you trust"
            ) from error
        except (RuntimeError, OSError, EOFError, ValueError) as error:
            raise _unreadable(self.path, error) from error

    def read(self, name: str) -> Tensor:
        return self._open()[name]

    def close(self) -> None:
        self.tensors = None


def _dtype_name(tensor: Tensor) -> str:
    kinds = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    return kinds.get(tensor.dtype, str(tensor.dtype))


def _state_dict(state: Any, path: Path) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
            break
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict: a dictionary of tensors, or one under {' or '.join(_WRAPPERS)}")
    return {name.removeprefix("_orig_mod."): value for name, value in state.items()}


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} cannot be read ({error}): copy or download it again")


def weight_files(folder: Path) -> list[Path]:
    """The files of a folder that hold its weights; ValueError for none, for several to choose from, for a missing shard."""
    for name in INDEXES:
        if (folder / name).exists():
            return _shards(folder / name)
    for name in SINGLES:
        if (folder / name).exists():
            return [folder / name]
    found = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", *PICKLES))
    if len(found) == 1:
        return found
    if found:
        raise ValueError(f"{folder} has several files of weights: name one of {', '.join(path.name for path in found)}")
    raise ValueError(f"{folder} holds no weights: neither {', '.join(SINGLES + INDEXES)} nor one .pt file")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of shards ({error!r}): download it again") from error
    if outside := [name for name in names if Path(name).name != name]:
        raise ValueError(f"{index} names files outside its folder: {', '.join(outside)}")
    if missing := [name for name in names if not (index.parent / name).exists()]:
        raise ValueError(f"{index.parent} lacks {', '.join(missing)}, which {index.name} names: download them")
    return [index.parent / name for name in names]


def write_weights(
    folder: Path | None, shapes: Mapping[str, Tensor], read: Callable[[str], Tensor], maximum_shard_bytes: int
) -> None:
    """model.safetensors, or shards with an index when it would exceed the maximum; one shard is in memory at a time.

    `shapes` are meta tensors by stored name; `read` gives the tensor itself when its turn comes. Without a folder everything is
    read, in the same order, and nothing written.
    """
    split = split_torch_state_dict_into_shards(dict(shapes), max_shard_size=maximum_shard_bytes)
    for name, members in split.filename_to_tensors.items():
        if folder is None:
            for member in members:
                read(member)
        else:
            save_file({member: read(member) for member in members}, folder / name, metadata={"format": "pt"})
    if folder is not None and split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": dict(sorted(split.tensor_to_filename.items()))}
        (folder / INDEXES[0]).write_text(json.dumps(index, indent=2) + "\n")
