"""From logits to one proposal per asked position: guidance, penalty, temperature, and how sure the network is.

Order: guidance, repeat penalty, mask token excluded; confidence is taken here, before temperature, top-k and top-p; then the
token is drawn. Everything runs in float64. Noise is a hash of (seed, sample, block, step, position, token), never a running
stream: a row's tokens depend on nothing but its own state, whatever stands beside it and whichever forward asks.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_GOLDEN, _FIRST, _SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685  # splitmix64 as int64


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn from its distribution. The default is greedy.

    `guidance_scale` s: logits = unconditional + (s + 1)(conditional - unconditional), the unconditional row with its prompt
    masked (LLaDA). `repeat_penalty` p: a token that already stands in prompt or answer has its logit divided by p when
    positive, else multiplied (arXiv:1909.05858).
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    guidance_scale: float = 0.0
    repeat_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < math.inf:
            raise ValueError(
                f"temperature {self.temperature} must not be negative or infinite; 0 takes the most likely token"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k {self.top_k} must be at least 1")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p {self.top_p} must lie in (0, 1]")
        if not 0.0 <= self.guidance_scale < math.inf:
            raise ValueError(
                f"guidance_scale {self.guidance_scale} must not be negative or infinite; 0 switches guidance off"
            )
        if not 0.0 < self.repeat_penalty < math.inf:
            raise ValueError(f"repeat_penalty {self.repeat_penalty} must be above 0, and finite; 1 switches it off")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed {self.seed} must fit into 64 bits: from -2**63 to 2**63 - 1")

    @property
    def lanes(self) -> int:
        """Rows of the network per answer: 2 under guidance."""
        return 2 if self.guidance_scale else 1


GREEDY = Sampling()


@dataclass(frozen=True)
class Draws:
    """How tokens are drawn where the rows of one batch differ in it: what `Sampling` says of a decode, one value per entry."""

    temperature: Float[Tensor, " entries"]
    top_p: Float[Tensor, " entries"]
    seed: Int[Tensor, " entries"]

    @classmethod
    def greedy(cls, count: int) -> "Draws":
        """`count` entries that take the most likely token."""
        return cls(
            torch.zeros(count, dtype=torch.float64), torch.ones(count, dtype=torch.float64), torch.zeros(count).long()
        )

    def __getitem__(self, index) -> "Draws":
        return Draws(self.temperature[index], self.top_p[index], self.seed[index])

    def put(self, entry: int, sampling: Sampling) -> None:
        """Sets one entry; ValueError for what cannot differ between the rows of a batch."""
        if sampling.top_k is not None or sampling.lanes != 1 or sampling.repeat_penalty != 1.0:
            raise ValueError("rows of one batch may differ in temperature, top_p and seed, and in nothing else")
        top_p = 1.0 if sampling.top_p is None else sampling.top_p
        self.temperature[entry], self.top_p[entry], self.seed[entry] = sampling.temperature, top_p, sampling.seed

    def move(self, source: int, destination: int) -> None:
        """Entry `destination` gets what `source` holds."""
        for values in vars(self).values():
            values[destination] = values[source]


@dataclass(frozen=True)
class Asked:
    """Which positions proposals are wanted for, on the host: row, candidate and offset in the block, and the noise counters."""

    row: Int[Tensor, " asked"]
    candidate: Int[Tensor, " asked"]
    offset: Int[Tensor, " asked"]
    counters: Int[Tensor, "4 asked"]  # sample, block, step, offset
    present: Bool[Tensor, "asked vocabulary"] | None = None  # tokens that the repeat penalty is for
    draws: Draws | None = None  # where rows differ in how tokens are drawn

    def __getitem__(self, part: slice) -> "Asked":
        present = None if self.present is None else self.present[part]
        draws = None if self.draws is None else self.draws[part]
        return Asked(self.row[part], self.candidate[part], self.offset[part], self.counters[:, part], present, draws)


@dataclass(frozen=True)
class Proposer:
    """Turns logits of asked positions into proposals. `mask_counts`: the mask token takes part in the confidence (as in the
    public samplers) though it is never proposed; `confidence_of_temperature`: confidences are of the tempered distribution."""

    sampling: Sampling
    mask_token_id: int | None
    needs_entropy: bool = False
    mask_counts: bool = False
    confidence_of_temperature: bool = False

    def guided(
        self, logits: Float[Tensor, "lanes_asked vocabulary"], asked: Asked
    ) -> Float[Tensor, "asked vocabulary"]:
        """Float64 logits after guidance and penalty; under guidance the unconditional ones stand in the second half."""
        logits = logits.double()
        if self.sampling.lanes == 2:
            given, free = logits.chunk(2)
            logits = free + (self.sampling.guidance_scale + 1.0) * (given - free)
        if asked.present is not None:
            penalty = self.sampling.repeat_penalty
            penalised = torch.where(logits > 0, logits / penalty, logits * penalty)
            logits = torch.where(asked.present.to(logits.device), penalised, logits)
        return logits

    def propose(self, logits: Float[Tensor, "asked vocabulary"], asked: Asked) -> Float[Tensor, "4 asked"]:
        """Token, doubt, gap to the runner-up (in logits) and entropy (0 unless needed) of every asked position.

        One tensor, so that a device is waited for once. NaN in logits becomes NaN in doubt. The logits are overwritten: with a
        large vocabulary, passing over memory is most of the work.
        """
        if self.confidence_of_temperature and self.sampling.temperature:
            logits /= self.sampling.temperature
        entropy = _entropy(self._without_mask(logits.clone())) if self.needs_entropy else None
        of_mask = logits[:, self.mask_token_id].clone() if self.mask_counts and self.mask_token_id is not None else None
        logits = self._without_mask(logits)
        is_drawn = bool(self.sampling.temperature if asked.draws is None else asked.draws.temperature.any())
        if is_drawn:
            scores = self._scores(logits, asked)
            best, token = scores.max(-1)
            gap = best - scores.scatter_(1, token[:, None], -torch.inf).amax(-1)
            own = logits.gather(1, token[:, None])
        else:
            own, token = logits.max(-1, keepdim=True)
            token = token[:, 0]
        odds = logits.sub_(own).exp_().scatter_(1, token[:, None], 0.0)  # p_v / p_token of all others
        doubt = odds.sum(-1)
        if not is_drawn:
            gap = -odds.amax(-1).log()
        if of_mask is not None:
            doubt = doubt + (of_mask - own[:, 0]).exp()
        return torch.stack((token.double(), doubt, gap, torch.zeros_like(doubt) if entropy is None else entropy))

    def _without_mask(self, logits: Tensor) -> Tensor:
        """The mask token gets no probability, in place."""
        if self.mask_token_id is not None:
            logits[:, self.mask_token_id] = -torch.inf
        return logits

    def _scores(self, logits: Float[Tensor, "asked vocabulary"], asked: Asked) -> Tensor:
        """Gumbel-max: logits + T * noise, tokens outside top-k and top-p excluded. T = 0 is the most likely token."""
        counters, top_k = asked.counters.to(logits.device), self.sampling.top_k
        if asked.draws is None:
            temperature = 1.0 if self.confidence_of_temperature else self.sampling.temperature
            top_p, seed = self.sampling.top_p, self.sampling.seed
        else:
            temperature, top_p = (
                values.to(logits.device)[:, None] for values in (asked.draws.temperature, asked.draws.top_p)
            )
            seed = asked.draws.seed.to(logits.device)
        kept = _top(logits, temperature, top_k, top_p)
        noise = gumbel_noise(seed, counters, logits.shape[1])
        return torch.where(kept, logits + temperature * noise, -torch.inf)


def _entropy(logits: Float[Tensor, "asked vocabulary"]) -> Float[Tensor, " asked"]:
    log_probability = logits.log_softmax(-1)
    return -(log_probability.exp() * log_probability).nan_to_num(0.0).sum(-1)


def _top(
    logits: Tensor,
    temperature: float | Float[Tensor, "asked 1"],
    top_k: int | None,
    top_p: float | Float[Tensor, "asked 1"] | None,
) -> Bool[Tensor, "asked vocabulary"]:
    """The tokens that may be drawn: the k most likely of them, then the smallest set whose probability reaches p."""
    kept = torch.ones_like(logits, dtype=torch.bool)
    if top_k is not None and top_k < logits.shape[1]:
        kept = logits >= logits.topk(top_k, -1).values[:, -1:]
    if top_p is not None and bool((torch.as_tensor(top_p) < 1.0).any()):
        if isinstance(temperature, Tensor):
            temperature = torch.where(temperature > 0, temperature, 1.0)  # at 0 the most likely token is kept anyway
        probability = (torch.where(kept, logits, -torch.inf) / temperature).softmax(-1)
        ordered, order = probability.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        kept = kept & torch.zeros_like(kept).scatter(1, order, before < top_p)
    return kept


def gumbel_noise(
    seed: int | Int[Tensor, " asked"], counters: Int[Tensor, "counters asked"], vocabulary: int
) -> Float[Tensor, "asked vocabulary"]:
    """Standard Gumbel noise, float64, a hash of seed, counters and token: the same on every device and in every batch."""
    key = torch.zeros_like(counters[0]) + seed
    for counter in counters:
        key = _mixed(key + (counter + 1) * _GOLDEN)
    tokens = torch.arange(1, vocabulary + 1, device=counters.device)
    bits = _mixed(key[:, None] + tokens * _GOLDEN)
    uniform = (_shifted(bits, 12).double() + 0.5) * 2.0**-52
    return -(-uniform.log()).log()


def _mixed(x: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
    """The finaliser of splitmix64; int64 products wrap as unsigned ones do."""
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Int[Tensor, "*any"], bits: int) -> Int[Tensor, "*any"]:
    """A logical right shift, which int64 has not."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
