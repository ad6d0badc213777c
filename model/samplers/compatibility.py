"""Quirks of the public samplers, by name, and the settings under which our decoder repeats each of them.

Each function takes the public sampler's own arguments and returns what `make_decoder` takes. docs/decoding.md says what each
quirk is, and what our default does instead.
"""

from dataclasses import dataclass
from typing import Any

from model.samplers.sampling import Sampling

STOPS = ("early", "block", "never", "on_placement")


@dataclass(frozen=True)
class Quirks:
    """Departures from our defaults. All off is the default decoder.

    `grid_from_prompt`: blocks are counted from the prompt's end. `stop`: overrides what an EOS does (see Grid).
    `canvas_tokens`: the canvas has this length whatever the answer's. `minimum_steps`: forwards per block even when fewer fill
    it. `mask_counts`: the mask token takes part in confidences. `confidence_of_temperature`: confidences are of the tempered
    distribution. `one_block`: the whole answer is one block.
    """

    grid_from_prompt: bool = False
    stop: str | None = None
    canvas_tokens: int | None = None
    minimum_steps: int = 1
    mask_counts: bool = False
    confidence_of_temperature: bool = False
    one_block: bool = False

    def __post_init__(self) -> None:
        if self.stop not in (None, *STOPS):
            raise ValueError(f"stop '{self.stop}' must be one of {', '.join(STOPS)}, or None for the decoder's own")
        if self.minimum_steps < 1:
            raise ValueError(f"minimum_steps {self.minimum_steps} must be at least 1")


NO_QUIRKS = Quirks()


def llada(
    steps: int, gen_length: int, block_length: int, temperature: float = 0.0, cfg_scale: float = 0.0, seed: int = 0
) -> dict[str, Any]:
    """LLaDA `generate.py` (also with left-padded prompts and an attention mask: rows here need no padding)."""
    per_block = _steps_per_block(steps, gen_length, block_length)
    return {
        "policy": {"name": "fixed_steps", "steps": per_block},
        "cache": "none",
        "block_tokens": block_length,
        "sampling": Sampling(temperature=temperature, guidance_scale=cfg_scale, seed=seed),
        "quirks": Quirks(grid_from_prompt=True, stop="never", mask_counts=True),
    }


def fast_dllm(
    steps: int,
    gen_length: int,
    block_length: int,
    threshold: float | None = None,
    factor: float | None = None,
    variant: str = "plain",
    temperature: float = 0.0,
) -> dict[str, Any]:
    """Fast-dLLM `generate.py`: variant `plain`, `prefix` or `dual` (its three functions)."""
    if variant not in ("plain", "prefix", "dual"):
        raise ValueError(f"variant '{variant}' must be plain, prefix or dual")
    options = llada(steps, gen_length, block_length, temperature)
    if threshold is not None:
        options["policy"] = {"name": "threshold", "threshold": threshold, "inclusive": True}
    elif factor is not None:
        options["policy"] = {"name": "factor", "factor": factor}
    cached = variant != "plain"
    quirks = Quirks(grid_from_prompt=True, stop="never", mask_counts=True, minimum_steps=2 if cached else 1)
    return options | {"cache": variant if cached else "none", "quirks": quirks}


def llada2(
    steps: int = 32,
    gen_length: int = 2048,
    block_length: int = 32,
    threshold: float = 0.95,
    minimal_topk: int = 1,
    eos_early_stop: bool = False,
    temperature: float = 0.0,
) -> dict[str, Any]:
    """LLaDA 2.0 `generate`; its window forwards are counted, ours read the same window through the exact cache."""
    return {
        "policy": {"name": "hybrid", "threshold": threshold, "steps": min(steps, gen_length // minimal_topk)},
        "cache": "prefix",
        "block_tokens": block_length,
        "sampling": Sampling(temperature=temperature),
        "quirks": Quirks(stop="on_placement" if eos_early_stop else "block", mask_counts=True),
    }


def llada21(
    block_length: int = 32,
    threshold: float = 0.95,
    editing_threshold: float = 0.9,
    max_post_steps: int = 16,
    num_to_transfer: int = 1,
    eos_early_stop: bool = False,
    temperature: float = 0.0,
) -> dict[str, Any]:
    """LLaDA 2.1 `generate` with token editing; its `steps` and `minimal_topk` do nothing there and are left out."""
    return {
        "policy": {
            "name": "token_editing",
            "threshold": threshold,
            "edit_threshold": editing_threshold,
            "least_tokens": num_to_transfer,
            "refining_steps": max_post_steps,
        },
        "cache": "prefix",
        "block_tokens": block_length,
        "sampling": Sampling(temperature=temperature),
        "quirks": Quirks(stop="block" if eos_early_stop else "never", mask_counts=True),
    }


def nano_llada(
    gen_steps: int, block_size: int, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> dict[str, Any]:
    """Nano-LLaDA `generate` of diffusion.py: the answer is one block in a canvas of `block_size` tokens."""
    return {
        "policy": {"name": "uniform_time", "steps": gen_steps},
        "cache": "none",
        "sampling": Sampling(temperature=temperature, top_k=top_k, top_p=top_p),
        "quirks": Quirks(
            grid_from_prompt=True,
            stop="never",
            canvas_tokens=block_size,
            one_block=True,
            confidence_of_temperature=True,
        ),
    }


def _steps_per_block(steps: int, gen_length: int, block_length: int) -> int:
    if block_length < 1 or gen_length % block_length:
        raise ValueError(f"block_length {block_length} must divide gen_length {gen_length}")
    blocks = gen_length // block_length
    if steps < 1 or steps % blocks:
        raise ValueError(f"steps {steps} must be a positive multiple of the number of blocks, {blocks}")
    return steps // blocks
