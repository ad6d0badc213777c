"""DPO with the diffusion bound in place of the likelihood (LLaDA 2.0 eq. 8): prefer the chosen answer to the rejected one.

    -log sigmoid(beta ((B(chosen) - B_ref(chosen)) - (B(rejected) - B_ref(rejected)))), B = - sum over hidden tokens of CE / t

A row holds one pair: document 0 is the chosen conversation, 1 the rejected one, with the same prompt. One t per part and one
draw per position serve both answers, policy and reference, so that what they have in common cancels (lower variance).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional

from model.network.transformer import Transformer
from model.noise import hidden_share
from model.objectives.block_diffusion import BlockDiffusion
from model.objectives.head_reading import read_head
from model.objectives.masked_diffusion import MaskedDiffusion
from model.objectives.objective import Head, Terms, View
from model.text.batch import Batch


@dataclass(frozen=True)
class PairView(View):
    """Also the pair of every graded row, and whether it belongs to the chosen answer."""

    pair: Int[Tensor, " graded"] | None = None
    chosen: Bool[Tensor, " graded"] | None = None
    num_pairs: int = 0


@dataclass(frozen=True, eq=False)
class Preference:
    """`reference` is the frozen model that training starts from; `beta` how far the policy may move from it."""

    base: BlockDiffusion | MaskedDiffusion
    reference: Transformer
    beta: float = 0.1

    def __post_init__(self) -> None:
        hiding = self.base.hiding
        if hiding.draw != "iid_t" or hiding.complementary or hiding.weighting != "likelihood":
            raise ValueError(
                f"a preference needs hiding.draw iid_t, weighting likelihood and no complementary copy (got {hiding.draw}, "
                f"{hiding.weighting}, complementary {hiding.complementary}): one mask is shared by both answers"
            )
        if self.beta <= 0:
            raise ValueError(f"beta {self.beta} must be above 0")
        self.reference.eval().requires_grad_(False)

    @property
    def weights(self) -> dict[str, float]:
        """The preference is the loss; how often the chosen answer wins, and by how many nats, is measured."""
        return {"preference": 1.0, "accuracy": 0.0, "margin": 0.0}

    def corrupt(self, batch: Batch, rng: torch.Generator) -> PairView:
        """Both answers of every pair with the same positions hidden, as far as both have them."""
        parts, device = self.base.parts(batch), batch.tokens.device
        shape = (len(parts), int(parts.max()) + 1)
        hiding = self.base.hiding
        share, weight = hidden_share(
            torch.rand(shape, generator=rng, device=rng.device).to(device),
            hiding.minimum_fraction, hiding.maximum_fraction, hiding.schedule,
        )  # fmt: skip
        chance = torch.rand(batch.tokens.shape, generator=rng, device=rng.device).to(device)
        hidden = batch.graded & (chance.gather(1, batch.positions) < share.gather(1, parts))
        view = self.base.view(batch, hidden, weight.gather(1, parts))
        assert view.source is not None
        return PairView(
            **vars(view),
            pair=view.source.div(batch.tokens.shape[1], rounding_mode="floor"),
            chosen=batch.documents.flatten()[view.source] == 0,
            num_pairs=len(batch.tokens),
        )

    def score(self, hidden, head: Head, view: View) -> Terms:
        """-log sigmoid of the scaled margin summed over pairs, wins, and margins in nats."""
        assert isinstance(view, PairView) and view.pair is not None and view.chosen is not None
        ids = view.targets[:, None]
        with torch.no_grad():
            states = self.reference(view.tokens, view.positions, view.pattern, view.embedding_noise, view.graded)
            known = read_head(states, self.reference.head, ids).cross_entropy
        gain = (known - read_head(hidden, head, ids).cross_entropy) * view.weights
        signed = torch.where(view.chosen, gain, -gain)
        margin = torch.zeros(view.num_pairs, dtype=gain.dtype, device=gain.device).index_add(0, view.pair, signed)
        count = self.counts(view)["preference"]
        return {
            "preference": (-functional.logsigmoid(self.beta * margin).sum(), count),
            "accuracy": ((margin.detach() > 0).sum().float(), count),
            "margin": (margin.detach().sum(), count),
        }

    def counts(self, view: View) -> dict[str, Tensor]:
        """All terms count pairs."""
        assert isinstance(view, PairView)
        count = torch.tensor(float(view.num_pairs), device=view.targets.device)
        return dict.fromkeys(self.weights, count)
