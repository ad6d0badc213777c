"""Where guesses of future states come from: a draft network, the target's own last logits, or both.

A guesser may be as wrong as it likes: the walk only follows a guess that equals the row's own next state.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from model.network.transformer import Transformer
from model.samplers.adaptive_depth import AdaptiveDepth, checked_depth
from model.samplers.policies import Policy, rank_ascending
from model.samplers.rows import Rows
from model.samplers.sampling import Asked
from model.samplers.sources import make_source
from model.samplers.states import Move, State, advance
from model.samplers.targets import Proposals, SourceSettings


@dataclass(frozen=True)
class Guesses:
    """Candidates per row, the row's own state first; `level[c]` = how many steps ahead candidate c lies."""

    states: State  # tokens [rows, candidates, block]
    valid: Bool[Tensor, "rows candidates"]
    level: Int[Tensor, " candidates"]


def no_guesses(rows: Rows) -> Guesses:
    """Plain decoding: the current state is the only candidate."""
    state = rows.state()
    states = State(state.tokens[:, None], state.step[:, None], state.full_steps[:, None])
    return Guesses(states, torch.ones(rows.num_live, 1, dtype=torch.bool), torch.zeros(1, dtype=torch.long))


class Guesser(Protocol):
    """Extends each row's current state by guessed future states of the same block. A width above 1 adds, at every level, states
    that reveal a little less or more of the same confidence order: what a threshold may come to."""

    width: int

    def largest(self) -> int:
        """The most guesses it ever makes for a row."""
        ...

    def start(self, settings: SourceSettings, num_slots: int, capacity: int) -> SourceSettings:
        """A new batch begins; returns the settings with what the guesser wants of the target."""
        ...

    def admit(self, rows: Rows, first: int, count: int) -> None:
        """Prompts have entered slots."""
        ...

    def guess(self, rows: Rows, policy: Policy) -> Guesses:
        """Candidates for the next target forward."""
        ...

    def observe(self, rows: Rows, last: Int[Tensor, " rows"], proposals: Proposals) -> None:
        """The target's proposals; row r used those of candidate last[r] last."""
        ...

    def next_block(self, chosen: Int[Tensor, " rows"]) -> None:
        """Rows went on to their next block."""
        ...

    def move(self, source: int, destination: int) -> None:
        """A row changed its slot."""
        ...

    def record(self, tried: int, matched: int) -> None:
        """How many guesses were looked for and found in the last forward."""
        ...


class ChainGuesser:
    """Repeats the policy on proposals of its own making, `depth` steps ahead; a subclass says where the proposals come from."""

    def __init__(self, depth: int | AdaptiveDepth, width: int = 1) -> None:
        self.depth = depth if isinstance(depth, AdaptiveDepth) else checked_depth(depth)
        if width < 1:
            raise ValueError(f"speculation width {width} must be at least 1")
        self.width = width

    def largest(self) -> int:
        """Depth times width."""
        depth = self.depth.maximum if isinstance(self.depth, AdaptiveDepth) else self.depth
        return depth * self.width

    def start(self, settings: SourceSettings, num_slots: int, capacity: int) -> SourceSettings:
        """Nothing is known about any row."""
        self.settings = settings
        return settings

    def admit(self, rows: Rows, first: int, count: int) -> None:
        """Nothing to read."""

    def observe(self, rows: Rows, last: Tensor, proposals: Proposals) -> None:
        """Nothing to learn."""

    def next_block(self, chosen: Tensor) -> None:
        """Nothing to forget."""

    def move(self, source: int, destination: int) -> None:
        """Nothing to carry."""

    def record(self, tried: int, matched: int) -> None:
        """Tell an adaptive depth."""
        if isinstance(self.depth, AdaptiveDepth):
            self.depth.record(tried, matched)

    def proposals(
        self, level: int, rows: Rows, current: State, alive: Tensor
    ) -> tuple[Proposals, Bool[Tensor, " rows"]]:
        """Proposals [rows, block] at the current guessed states, and for which rows there are any."""
        raise NotImplementedError

    def guess(self, rows: Rows, policy: Policy) -> Guesses:
        """The chain of states that the policy would take on these proposals, with nested prefixes beside them."""
        current, alive = rows.state(), torch.ones(rows.num_live, dtype=torch.bool)
        states, valid, levels = [current], [alive], [0]
        depth = self.depth.now(rows.num_live) if isinstance(self.depth, AdaptiveDepth) else self.depth
        for level in range(1, depth + 1):
            found, known = self.proposals(level, rows, current, alive)
            move = advance(policy, rows.grid, current, found, rows.hidden_at_start, rows.answerable())
            for state, real in self._alternatives(rows, current, move, found):
                states.append(state)
                valid.append(real & alive & known)
                levels.append(level)
            alive = alive & known & ~move.finished
            if not alive.any():
                break
            keep = alive[:, None]
            current = State(
                torch.where(keep, move.after.tokens, current.tokens),
                torch.where(alive, move.after.step, current.step),
                torch.where(alive, move.after.full_steps, current.full_steps),
            )
            states.append(current)
            valid.append(alive)
            levels.append(level)
        stacked = State(
            torch.stack([state.tokens for state in states], 1),
            torch.stack([state.step for state in states], 1),
            torch.stack([state.full_steps for state in states], 1),
        )
        return Guesses(stacked, torch.stack(valid, 1), torch.tensor(levels))

    def _alternatives(self, rows: Rows, before: State, move: Move, found: Proposals):
        """Nested prefixes of the confidence order around the guessed one: one less, one more, two less ..."""
        hidden = before.tokens == rows.mask
        doubt = torch.where(hidden, found.doubt, torch.inf)
        rank, own, most = rank_ascending(doubt), (move.written & hidden).sum(1), hidden.sum(1)
        for number in range(self.width - 1):
            count = own + (-1 if number % 2 == 0 else 1) * (number // 2 + 1)
            reveal = (rank < count[:, None]) & hidden | move.edited
            tokens = torch.where(reveal, found.tokens, before.tokens)
            yield State(tokens, move.after.step, move.after.full_steps), (count >= 1) & (count < most)


class StaleGuesser(ChainGuesser):
    """Self-drafting: the target's proposals at the last visited state, applied again and again. Costs no forward.

    At a temperature above 0 the last logits are kept, and every step draws from them with its own noise.
    """

    def start(self, settings: SourceSettings, num_slots: int, capacity: int) -> SourceSettings:
        """Nothing is known about any row."""
        block = settings.grid.block
        self.settings, self.draws = settings, settings.proposer.sampling.temperature > 0
        self.known = torch.zeros(num_slots, dtype=torch.bool)
        self.held = [torch.zeros(num_slots, block, dtype=torch.long)]
        self.held += [torch.full((num_slots, block), torch.inf, dtype=torch.float64) for _ in range(3)]
        self.logits: Tensor | None = None
        return SourceSettings(settings.grid, settings.proposer, settings.edits, keep_logits=self.draws)

    def admit(self, rows: Rows, first: int, count: int) -> None:
        """A new prompt has no stale logits."""
        self.known[first : first + count] = False

    def next_block(self, chosen: Tensor) -> None:
        """The old logits say nothing about a new block."""
        self.known[chosen] = False

    def move(self, source: int, destination: int) -> None:
        """A row takes its logits along."""
        held = [self.known, *self.held, *([] if self.logits is None else [self.logits])]
        for values in held:
            values[destination] = values[source]

    def observe(self, rows: Rows, last: Tensor, proposals: Proposals) -> None:
        """Remember the proposals at the last visited state."""
        live = torch.arange(rows.num_live)
        picked = proposals[live, last]
        self.known[: rows.num_live] = True
        for held, new in zip(self.held, (picked.tokens, picked.doubt, picked.gap, picked.entropy), strict=True):
            held[: rows.num_live] = new
        if self.draws and proposals.logits is not None and proposals.asked is not None:
            self._keep(rows, last, proposals.asked, proposals.logits)

    def _keep(self, rows: Rows, last: Tensor, asked: Asked, logits: Float[Tensor, "asked vocabulary"]) -> None:
        if self.logits is None:
            self.logits = logits.new_zeros(*self.held[0].shape, logits.shape[1])
        own = (asked.candidate == last[asked.row]).nonzero()[:, 0]
        self.logits[asked.row[own], asked.offset[own]] = logits[own.to(logits.device)]

    def proposals(self, level: int, rows: Rows, current: State, alive: Tensor) -> tuple[Proposals, Tensor]:
        """The stale ones."""
        live = rows.num_live
        tokens, doubt, gap, entropy = (held[:live] for held in self.held)
        if self.draws and self.logits is not None:
            tokens, doubt = self._drawn(rows, current, doubt)
        return Proposals(tokens, doubt, gap, entropy), self.known[:live] & alive

    def _drawn(self, rows: Rows, current: State, doubt: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens drawn from the stale logits with the noise of the guessed step."""
        assert self.logits is not None
        row, offset = doubt.isfinite().nonzero(as_tuple=True)
        counters = torch.stack((rows.sample[row], rows.start[row] // rows.block, current.step[row], offset))
        asked = Asked(row, row * 0, offset, counters)
        found = self.settings.proposer.propose(self.logits[row, offset], asked).cpu()
        tokens, doubt = torch.zeros_like(doubt, dtype=torch.long), torch.full_like(doubt, torch.inf)
        tokens[row, offset], doubt[row, offset] = found[0].long(), found[1]
        return tokens, doubt


class DraftGuesser(ChainGuesser):
    """A smaller network runs the same policy from the same state on its own cache: one draft forward per step of depth."""

    def __init__(self, network: Transformer, target: Transformer, depth: int | AdaptiveDepth, width: int = 1) -> None:
        super().__init__(depth, width)
        self.network, self.target = network, target
        check_compatible(network, target)

    def start(self, settings: SourceSettings, num_slots: int, capacity: int) -> SourceSettings:
        """A cache of the draft's own."""
        settings = super().start(settings, num_slots, capacity)
        cache = "prefix" if self.network.config.attention == "block_causal" else "none"
        self.source = make_source(self.network, settings, num_slots, capacity, cache)
        self.source.tokens_counter = "draft_tokens"
        return settings

    def admit(self, rows: Rows, first: int, count: int) -> None:
        """The draft reads the prompts too."""
        self.source.admit(rows, first, count)

    def move(self, source: int, destination: int) -> None:
        """The draft's cache follows."""
        self.source.move(source, destination)

    def proposals(self, level: int, rows: Rows, current: State, alive: Tensor) -> tuple[Proposals, Tensor]:
        """The draft's own at the guessed states."""
        states = State(current.tokens[:, None], current.step[:, None], current.full_steps[:, None])
        found = self.source.forward(rows, states, alive[:, None])
        rows.count("draft_forwards", alive.long())
        return found[:, 0], alive


class BothGuesser(DraftGuesser):
    """The first edge from the target's own last logits, which cost nothing, the rest from the draft."""

    def __init__(self, network: Transformer, target: Transformer, depth: int | AdaptiveDepth, width: int = 1) -> None:
        super().__init__(network, target, depth, width)
        self.stale = StaleGuesser(1)

    def start(self, settings: SourceSettings, num_slots: int, capacity: int) -> SourceSettings:
        """Both start."""
        super().start(settings, num_slots, capacity)
        return self.stale.start(settings, num_slots, capacity)

    def admit(self, rows: Rows, first: int, count: int) -> None:
        """Both take the prompts."""
        super().admit(rows, first, count)
        self.stale.admit(rows, first, count)

    def next_block(self, chosen: Tensor) -> None:
        """The old logits say nothing about a new block."""
        self.stale.next_block(chosen)

    def move(self, source: int, destination: int) -> None:
        """Both follow."""
        super().move(source, destination)
        self.stale.move(source, destination)

    def observe(self, rows: Rows, last: Tensor, proposals: Proposals) -> None:
        """Remember the target's proposals."""
        self.stale.observe(rows, last, proposals)

    def proposals(self, level: int, rows: Rows, current: State, alive: Tensor) -> tuple[Proposals, Tensor]:
        """Stale ones first where there are any, the draft's otherwise."""
        if level > 1:
            return super().proposals(level, rows, current, alive)
        stale, known = self.stale.proposals(level, rows, current, alive)
        if bool((known | ~alive).all()):
            return stale, known
        drafted, _ = super().proposals(level, rows, current, alive & ~known)
        parts = zip(vars(stale).values(), vars(drafted).values(), strict=True)
        return Proposals(*(torch.where(known[:, None], old, new) for old, new in list(parts)[:4])), alive


def check_compatible(draft: Transformer, target: Transformer) -> None:
    """Draft and target must share vocabulary, mask token and block grid; a mismatch is an error, never a fallback."""
    for name in ("vocabulary_size", "mask_token_id", "eos_token_id", "block_tokens"):
        ours, theirs = getattr(draft.config, name), getattr(target.config, name)
        if ours != theirs:
            raise ValueError(
                f"draft and target differ in {name} ({ours} and {theirs}): the draft must be distilled from this target"
            )
