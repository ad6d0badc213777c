"""From a network and a policy's name to something that answers prompts."""

from collections.abc import Callable
from typing import Any

from model.network.transformer import Transformer
from model.registry import resolve
from model.samplers.block_loop import BlockDecoder
from model.samplers.compatibility import NO_QUIRKS, Quirks
from model.samplers.guesses import Guesser
from model.samplers.left_to_right import LeftToRight
from model.samplers.policies import FixedSteps, Policy
from model.samplers.results import Decoded
from model.samplers.sampling import GREEDY, Sampling

Decoder = Callable[..., list[Decoded]]


def make_policy(description: dict[str, Any], block_tokens: int) -> Policy:
    """The policy of `{"name": "threshold", "threshold": 0.9}`; `{"name": "one_token"}` and `{"name": "tokens_per_step",
    "tokens": 8}` are fixed steps counted the other way round."""
    options = dict(description)
    name = options.pop("name", None)
    if name == "one_token":
        return FixedSteps(block_tokens)
    if name == "tokens_per_step":
        tokens = options.pop("tokens")
        if not 1 <= tokens <= block_tokens:
            raise ValueError(f"tokens_per_step {tokens} must lie between 1 and the block's {block_tokens} tokens")
        return FixedSteps(-(-block_tokens // tokens))
    try:
        return resolve("policy", name)(**options)
    except TypeError as error:
        raise ValueError(f"policy {description}: {error}") from error


def make_decoder(
    network: Transformer,
    policy: dict[str, Any] | None = None,
    batch_rows: int = 64,
    eos_early_stop: bool = True,
    guesser: Guesser | None = None,
    *,
    sampling: Sampling | dict[str, Any] = GREEDY,
    cache: str | None = None,
    block_tokens: int | None = None,
    quirks: Quirks = NO_QUIRKS,
) -> Decoder:
    """`decode(prompts, max_new_tokens) -> list[Decoded]`; a causal network decodes left to right, any other needs a policy.

    `sampling`: temperature and what goes with it, also as a dictionary. `cache`: none, prefix or dual (None: the network's exact
    one). `quirks`: named departures that repeat a public sampler, see model.samplers.compatibility.
    """
    if isinstance(sampling, dict):
        try:
            sampling = Sampling(**sampling)
        except TypeError as error:
            raise ValueError(f"sampling {sampling}: {error}") from error
    if network.config.attention == "causal":
        return LeftToRight(network, batch_rows, sampling)
    if policy is None:
        raise ValueError(
            "a diffusion network needs a decoding policy, for example {'name': 'threshold', 'threshold': 0.9}"
        )
    made = make_policy(policy, block_tokens or network.config.block_tokens)
    return BlockDecoder(
        network,
        made,
        batch_rows,
        eos_early_stop,
        guesser,
        sampling=sampling,
        cache=cache,
        block_tokens=block_tokens,
        quirks=quirks,
    )
