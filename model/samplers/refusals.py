"""What a decoder refuses, each with the way out."""

from model.network.config import NetworkConfig
from model.samplers.compatibility import NO_QUIRKS, Quirks
from model.samplers.policies import LeftToRight, Policy
from model.samplers.sampling import Sampling
from model.samplers.sources import CACHES


def check_sampler(
    config: NetworkConfig,
    policy: Policy,
    is_guessed: bool,
    sampling: Sampling,
    block_tokens: int | None,
    quirks: Quirks,
) -> None:
    """ValueError for a combination of network and options that cannot decode."""
    if block_tokens is not None and block_tokens < 1:
        raise ValueError(f"block_tokens {block_tokens} must be at least 1")
    if config.attention != "causal":
        if config.mask_token_id is None:
            raise ValueError("the network has no mask token: run it through convert_to_diffusion first")
        return
    if not isinstance(policy, LeftToRight):
        raise ValueError(
            "a causal network decodes under policy left_to_right: its blocks are one position, there is nothing to choose"
        )
    if is_guessed:
        raise ValueError(
            "a causal network decodes without guesses: they foresee states of one block, and its blocks are one position"
        )
    if sampling.guidance_scale:
        raise ValueError("guidance masks the prompt: a causal network has no mask token to do it with")
    if block_tokens not in (None, 1):
        raise ValueError(f"block_tokens is {block_tokens}: a causal network's blocks are one position, leave it out")
    if quirks != NO_QUIRKS:
        raise ValueError("quirks repeat samplers of diffusion networks; this network is causal: leave them out")


def checked_cache(cache: str | None, config: NetworkConfig, quirks: Quirks) -> str:
    """The kind of cache: by default the exact one that the network has."""
    is_causal, in_blocks = config.attention == "causal", config.attention == "block_causal"
    cache = cache or ("prefix" if is_causal or in_blocks else "none")
    if cache not in CACHES:
        raise ValueError(f"cache '{cache}' must be one of {', '.join(CACHES)}")
    if is_causal and cache != "prefix":
        raise ValueError(f"cache '{cache}': a causal network decodes over its exact prefix cache, leave the option out")
    if cache == "dual" and in_blocks:
        raise ValueError(
            "a dual cache is for bidirectional networks; this one is block-causal: its prefix cache is exact"
        )
    if in_blocks and quirks.grid_from_prompt:
        raise ValueError("a block-causal network counts blocks from the first token, not from the prompt's end")
    return cache


def check_prompts(
    prompts: list[list[int]], max_new_tokens: int, config: NetworkConfig, block_tokens: int, quirks: Quirks
) -> None:
    """ValueError for a prompt that cannot be decoded, or not together with so many new tokens."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens {max_new_tokens} must be at least 1")
    if quirks.grid_from_prompt and not quirks.one_block and max_new_tokens % block_tokens:
        raise ValueError(
            f"block_tokens {block_tokens} does not divide max_new_tokens {max_new_tokens}: blocks counted from the prompt's "
            "end must fill the answer"
        )
    context = quirks.canvas_tokens or config.maximum_positions
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {index} is empty: give at least one token")
        if config.attention != "causal" and config.mask_token_id in prompt:
            raise ValueError(
                f"prompt {index} contains the mask token {config.mask_token_id}: it would count as hidden text"
            )
        if min(prompt) < 0 or max(prompt) >= config.vocabulary_size:
            raise ValueError(
                f"prompt {index} holds a token outside the vocabulary of {config.vocabulary_size} tokens: it was made with "
                "another tokenizer"
            )
        if len(prompt) + max_new_tokens > context:
            raise ValueError(
                f"prompt {index} has {len(prompt)} tokens: with max_new_tokens {max_new_tokens} that exceeds the context of "
                f"{context}; shorten one of them"
            )
