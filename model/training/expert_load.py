"""What a training run does with the loads of a mixture of experts: records them, and balances them where asked to."""

from collections.abc import Callable

from jaxtyping import Int
from torch import Tensor, nn

from model.network.experts import balance, mixtures, take_loads


class ExpertLoads:
    """Tokens per expert, summed over processes. `expert_bias` frozen leaves the routers' biases alone, `balanced` moves them by
    `bias_step` after every optimizer step (methods section 5). For a dense network all of it does nothing."""

    def __init__(
        self, network: nn.Module, expert_bias: str, bias_step: float, reduce: Callable[[Tensor, str], Tensor]
    ) -> None:
        self.has_experts = any(True for _ in mixtures(network))
        if expert_bias == "balanced" and not self.has_experts:
            raise ValueError("expert_bias 'balanced' needs a mixture of experts: this network is dense; leave it out")
        self.network, self.reduce = network, reduce
        self.bias_step = bias_step if expert_bias == "balanced" else 0.0
        self._seen: dict[int, Int[Tensor, " experts"]] = {}

    def after_step(self) -> None:
        """Takes the step's loads of every layer and, when balanced, moves the biases."""
        if not self.has_experts:
            return
        loads = {layer: self.reduce(load, "sum") for layer, load in take_loads(self.network).items()}
        if self.bias_step:
            balance(self.network, loads, self.bias_step)
        self._seen = {layer: load + self._seen.get(layer, 0) for layer, load in loads.items()}

    def metrics(self) -> dict[str, float]:
        """Since the last call: each expert's share of its layer's (token, choice) pairs, and the share of the busiest."""
        values: dict[str, float] = {}
        for layer, load in self._seen.items():
            shares = (load / load.sum().clamp_min(1)).tolist()
            values[f"experts/layer_{layer:02d}/busiest"] = max(shares)
            values |= {f"experts/layer_{layer:02d}/expert_{index:03d}": share for index, share in enumerate(shares)}
        self._seen = {}
        return values
