"""Which source answers for a network under a kind of cache."""

from model.network.transformer import Transformer
from model.samplers.cached_targets import CachedSource
from model.samplers.causal_targets import CausalSource
from model.samplers.targets import RecomputingSource, Source, SourceSettings

CACHES = ("none", "prefix", "dual")


def make_source(
    network: Transformer, settings: SourceSettings, num_slots: int, capacity: int, cache: str, candidates: int = 1
) -> Source:
    """The source; `candidates`: of one row in one forward at most."""
    if network.config.attention == "causal":
        return CausalSource(network, settings, num_slots, capacity)
    if cache == "none":
        return RecomputingSource(network, settings)
    return CachedSource(network, settings, num_slots, capacity, cache, candidates)
