"""From a network and a policy's name to something that answers prompts."""

from typing import Any

from model.network.transformer import Transformer
from model.registry import resolve
from model.samplers.block_loop import BlockDecoder
from model.samplers.compatibility import NO_QUIRKS, Quirks
from model.samplers.guesses import Guesser
from model.samplers.policies import FixedSteps, LeftToRight, Policy
from model.samplers.sampling import GREEDY, Sampling

# Fixed steps counted the other way round, and their options.
COUNTED: dict[str, tuple[str, ...]] = {"one_token": (), "tokens_per_step": ("tokens",)}


def make_policy(description: dict[str, Any], block_tokens: int) -> Policy:
    """The policy of `{"name": "threshold", "threshold": 0.9}`; `{"name": "one_token"}` and `{"name": "tokens_per_step",
    "tokens": 8}` are fixed steps counted the other way round. ValueError for options that the policy has not."""
    options = dict(description)
    name = options.pop("name", None)
    if name in COUNTED:
        if set(options) != set(COUNTED[name]):
            raise ValueError(f"policy {description}: {name} takes {' and '.join(COUNTED[name]) or 'no options'}")
        tokens = options.get("tokens", 1)
        if not isinstance(tokens, int) or not 1 <= tokens <= block_tokens:
            raise ValueError(f"{name} {tokens} must be a whole number from 1 to the block's {block_tokens} tokens")
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
) -> BlockDecoder:
    """`decode(prompts, max_new_tokens) -> list[Decoded]`; a diffusion network needs a policy, a causal one decodes left to right
    whatever the policy: in a block of one position all of them come to that.

    `sampling`: temperature and what goes with it, also as a dictionary. `cache`: none, prefix or dual (None: the network's exact
    one). `quirks`: named departures that repeat a public sampler, see model.samplers.compatibility.
    """
    if isinstance(sampling, dict):
        try:
            sampling = Sampling(**sampling)
        except TypeError as error:
            raise ValueError(f"sampling {sampling}: {error}") from error
    is_causal = network.config.attention == "causal"
    if policy is None and not is_causal:
        raise ValueError(
            "a diffusion network needs a decoding policy, for example {'name': 'threshold', 'threshold': 0.9}"
        )
    made = make_policy(policy or {"name": "left_to_right"}, block_tokens or network.config.block_tokens)
    return BlockDecoder(
        network,
        LeftToRight() if is_causal else made,
        batch_rows,
        eos_early_stop,
        guesser,
        sampling=sampling,
        cache=cache,
        block_tokens=block_tokens,
        quirks=quirks,
    )
