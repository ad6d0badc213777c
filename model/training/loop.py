"""The one training loop: any objective, any network, any number of accumulation steps and processes (accelerate).

What a step draws comes from a generator seeded by (seed, step, slice), so that resuming needs weights, optimizer state and the
step number only, and continues bit for bit.
"""

import math
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from model.checkpoints.network_weights import is_sharded
from model.objectives.curriculum import Curriculum
from model.objectives.objective import Objective, Terms, View
from model.text.batch import Batch
from model.text.packing import TokenRows
from model.training.best_weights import BestWeights
from model.training.compiling import compile_layers
from model.training.config import TrainingConfig
from model.training.expert_load import ExpertLoads
from model.training.loader import RowLoader, timed
from model.training.optimizer import learning_rate_factor, make_optimizers
from model.training.resume_points import Progress, ResumePoints
from model.training.sharding import processes, sharding
from model.training.tracker import Tracker


def seeded(seed: int, *counters: int) -> torch.Generator:
    """A generator that depends on the seed and the counters alone (a fixed mixing of 64-bit words)."""
    state = seed & (2**64 - 1)
    for counter in counters:
        state = (state ^ (counter + 0x9E3779B97F4A7C15)) * 0xBF58476D1CE4E5B9 & (2**64 - 1)
        state ^= state >> 31
    return torch.Generator().manual_seed(state & (2**63 - 1))


class Trainer:
    """Trains `network` on `loader` with `objective`; `run()` returns when all steps are done or patience is out.

    `loader` gives whole batches: each process takes its share of the rows. Under FSDP2 a network that is not cut yet is cut here.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective | Curriculum,
        validation_objective: Objective,
        loader: RowLoader,
        validation: TokenRows,
        config: TrainingConfig,
        work: Path,
        tracker: Tracker,
        seed: int,
        name: str,
    ) -> None:
        mixed = {"float32": "no", "bfloat16": "bf16"}[config.precision]
        processes()
        self.accelerator = Accelerator(mixed_precision=mixed)
        self.objective_at = objective.at if isinstance(objective, Curriculum) else lambda step: objective
        self.objective, self.validation_objective = self.objective_at(0), validation_objective
        self._check_shares(config)
        self.loader = loader.fraction(self.accelerator.process_index, self.accelerator.num_processes)
        self.validation, self.config = validation, config
        self.work, self.tracker, self.seed, self.name = work, tracker, seed, name
        shard = sharding(config.precision)
        if shard and not is_sharded(network):
            shard(network)
        self.shares_network = shard is not None
        if config.compile and self.shares_network:
            raise ValueError("compile is true and the network is cut over processes (fsdp2): leave one of them out")
        optimizers = make_optimizers(network, config.optimizer, config.learning_rate, config.weight_decay)
        self.network, self.optimizers = network, optimizers
        if not self.shares_network:
            self.network, *self.optimizers = self.accelerator.prepare(network, *optimizers)
        self.raw_network = self.accelerator.unwrap_model(self.network)
        if config.compile:
            compile_layers(self.raw_network)
        # A whole matrix is read in pieces; a shared one is gathered by the network's own method, which gives all logits.
        self.head = self.raw_network.head if self.shares_network else self.raw_network.unembedding
        self.experts = ExpertLoads(
            self.raw_network, config.expert_bias, config.expert_bias_step, self.accelerator.reduce
        )
        self.factor = learning_rate_factor(
            config.schedule, config.steps, config.warmup_steps, config.minimum_learning_rate_fraction
        )
        self.best = BestWeights(work / "best")
        self.points = ResumePoints(work, name, self.accelerator, self.network, self.optimizers, self.shares_network)
        self.progress = Progress(shared=self.shares_network)

    def run(self) -> Progress:
        """Train from the last checkpoint in the work folder, if any, to the end."""
        self.progress = self.points.load(self.progress)
        config, progress = self.config, self.progress
        bar = tqdm(
            total=config.steps,
            initial=progress.step,
            desc=self.name,
            unit="step",
            mininterval=2.0,
            dynamic_ncols=True,
            disable=not self.accelerator.is_local_main_process,
        )
        window = _Window()
        batches = self.loader.prefetch(progress.step, config.steps)
        with bar:
            for batch, waited in timed(batches):
                if progress.stopped_early:
                    break
                tokens = int((batch.documents >= 0).sum()) * self.accelerator.num_processes
                window.add(self._step(batch), tokens, waited)
                progress.step += 1
                bar.update()
                if progress.step % config.log_every_steps == 0 or progress.step == config.steps:
                    self._log(window, bar)
                    window = _Window()
                if progress.step % config.validate_every_steps == 0 or progress.step == config.steps:
                    self._validate()
                if progress.step % config.checkpoint_every_steps == 0 and progress.step < config.steps:
                    self.points.save(progress)
        if config.merge_best and len(progress.kept) > 1:
            self._merge()
        return progress

    def _step(self, batch: Batch) -> dict[str, float]:
        step, config = self.progress.step, self.config
        self.network.train()
        self.objective = self.objective_at(step)
        slices = self._slices(batch, step)
        alone = len(slices) * self.accelerator.num_processes == 1  # then the only slice's own counts are the totals
        totals = {} if alone else self._counts(slices)
        measured: dict[str, Tensor] = {}
        for view in slices:
            terms = self._terms(view)
            if alone:
                totals = {name: count.clamp_min(1.0) for name, (_, count) in terms.items()}
            parts = {name: total / totals[name] for name, (total, _) in terms.items()}
            loss = sum(self.objective.weights[name] * part for name, part in parts.items())
            # DDP and FSDP2 average gradients over processes; the terms are already divided by the counts of all of them.
            self.accelerator.backward(loss * self.accelerator.num_processes)
            for name, part in {**parts, "loss": loss}.items():
                measured[name] = measured.get(name, 0.0) + part.detach()
        norm = self.accelerator.clip_grad_norm_(self.network.parameters(), config.gradient_clip)
        values = {name: float(self.accelerator.reduce(value, "sum")) for name, value in measured.items()}
        values["gradient_norm"] = float(norm.full_tensor() if self.shares_network else norm)
        if not (math.isfinite(values["loss"]) and math.isfinite(values["gradient_norm"])):
            raise ValueError(
                f"{self.name}: the loss or its gradient is not finite at step {step + 1} (loss {values['loss']}, gradient norm "
                f"{values['gradient_norm']}). The last good checkpoint is in {self.work}; lower learning_rate or gradient_clip"
            )
        values["learning_rate"] = config.learning_rate * self.factor(step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = values["learning_rate"]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.experts.after_step()
        return values

    def _check_shares(self, config: TrainingConfig) -> None:
        processes = self.accelerator.num_processes
        if config.batch_rows % (config.accumulation_steps * processes):
            raise ValueError(
                f"batch_rows {config.batch_rows} must be a multiple of accumulation_steps {config.accumulation_steps} x "
                f"{processes} processes"
            )

    def _slices(self, batch: Batch, step: int) -> list[View]:
        """This process's slices of the batch, each corrupted by the generator of its place in it, whoever computes it."""
        accelerator, parts = self.accelerator, self.config.accumulation_steps
        rows = batch.tokens.shape[0] // parts
        views = []
        for index in range(parts):
            piece = batch.rows(slice(index * rows, (index + 1) * rows))
            rng = seeded(self.seed, step, accelerator.process_index * parts + index)
            views.append(self.objective.corrupt(piece.to(accelerator.device), rng))
        return views

    def _terms(self, view: View) -> Terms:
        with self.accelerator.autocast():
            hidden = self.network(view.tokens, view.positions, view.pattern, view.embedding_noise, view.graded)
            return self.objective.score(hidden, self.head, view)

    def _counts(self, views: list[View]) -> dict[str, Tensor]:
        """Counts of every term summed over slices and processes; a pass without gradient where only the network knows them."""
        totals: dict[str, Tensor] = {}
        for view in views:
            counts = self.objective.counts(view)
            if counts is None:
                with torch.no_grad():
                    counts = {name: count for name, (_, count) in self._terms(view).items()}
            totals = {name: totals.get(name, 0.0) + count.to(self.accelerator.device) for name, count in counts.items()}
        return {name: self.accelerator.reduce(total, "sum").clamp_min(1.0) for name, total in totals.items()}

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float]:
        """Loss and bits per byte on the first validation rows, with the same hidden tokens at every evaluation."""
        self.network.eval()
        rows = min(self.config.validation_rows, self.validation.num_rows)
        sums: dict[str, list[float]] = {}
        graded, starts, world = 0, range(0, rows, 64), self.accelerator.num_processes
        # Every process makes equally many forwards; one that has run out of rows repeats some and counts nothing.
        for turn in range(self.accelerator.process_index, -(-len(starts) // world) * world, world):
            index, counted = turn % len(starts), turn < len(starts)
            start = starts[index]
            batch = self.validation.read(range(start, min(start + 64, rows))).to(self.accelerator.device)
            view = self.validation_objective.corrupt(batch, seeded(self.seed, 2**40, index))
            with self.accelerator.autocast():
                hidden = self.network(view.tokens, view.positions, view.pattern, view.embedding_noise, view.graded)
                terms = self.validation_objective.score(hidden, self.head, view)
            graded += int(batch.graded.sum()) * counted
            for name, (total, count) in terms.items():
                pair = sums.setdefault(name, [0.0, 0.0])
                pair[0] += float(total) * counted
                pair[1] += float(count) * counted
        if world > 1:
            values = torch.tensor([*sums.values(), [graded, 0.0]], dtype=torch.float64, device=self.accelerator.device)
            *pairs, (graded, _) = self.accelerator.reduce(values, "sum").tolist()
            sums = dict(zip(sums, pairs, strict=True))
        means = {name: total / max(count, 1.0) for name, (total, count) in sums.items()}
        likelihood = next(name for name in means if self.validation_objective.weights[name] > 0)
        nats_per_byte = sums[likelihood][0] / (self.validation.num_bytes * graded / self.validation.num_graded_tokens)
        bits = nats_per_byte / math.log(2.0)
        return {
            "val/loss": means[likelihood],
            "val/bits_per_byte": bits,
            "val/accuracy": means.get("accuracy", math.nan),
        }

    def _validate(self) -> None:
        """Records an evaluation, keeps its weights where they are to be merged, and counts towards patience."""
        record, progress = self._evaluate(), self.progress
        bits = record["val/bits_per_byte"]
        self.tracker.log_metrics(record | self.experts.metrics(), step=progress.step)
        progress.curve.append({"step": progress.step, **record})
        if self.config.merge_best:
            self._keep(bits)
        if bits < progress.best - self.config.minimum_improvement:
            progress.best, progress.evaluations_without_improvement = bits, 0
        else:
            progress.evaluations_without_improvement += 1
        patience = self.config.patience
        progress.stopped_early = patience is not None and progress.evaluations_without_improvement >= patience

    def _keep(self, bits: float) -> None:
        """Writes these weights beside the best so far and removes the worst when there are too many."""
        known = [(bits, step) for bits, step in self.progress.kept]
        kept = sorted([*known, (bits, self.progress.step)])[: self.config.merge_best]
        gone = [step for _, step in self.progress.kept if step not in {step for _, step in kept}]
        is_first = self.accelerator.is_main_process
        if self.progress.step in {step for _, step in kept} and (is_first or self.shares_network):
            self.best.write(self.raw_network, self.progress.step)
        if is_first:
            self.best.remove(gone)
        self.progress.kept = kept

    def _merge(self) -> None:
        """The network becomes the mean of the best weights (LLaDA 2.0), and is validated once more."""
        self.accelerator.wait_for_everyone()
        self.best.load_mean(self.raw_network, [step for _, step in self.progress.kept])
        record = {f"merged/{name.removeprefix('val/')}": value for name, value in self._evaluate().items()}
        self.tracker.log_metrics(record, step=self.progress.step)
        self.progress.curve.append({"step": self.progress.step, **record})

    def _log(self, window: "_Window", bar: tqdm) -> None:
        means = window.means()
        self.progress.curve.append({"step": self.progress.step, **{f"train/{k}": v for k, v in means.items()}})
        self.tracker.log_metrics(
            {
                **{f"train/{name}": value for name, value in means.items()},
                "train/tokens_per_second": window.tokens / window.seconds(),
                "train/loader_wait_fraction": window.waited / window.seconds(),
            },
            step=self.progress.step,
        )
        bar.set_postfix(loss=f"{means['loss']:.3f}", refresh=False)


class _Window:
    """Averages since the last log line."""

    def __init__(self) -> None:
        self.values: list[dict[str, float]] = []
        self.tokens, self.waited, self.started = 0, 0.0, time.perf_counter()

    def add(self, values: dict[str, float], tokens: int, waited: float) -> None:
        """A step's values, its real tokens, and the seconds that it waited for its batch."""
        self.values.append(values)
        self.tokens += tokens
        self.waited += waited

    def means(self) -> dict[str, float]:
        return {name: sum(v[name] for v in self.values) / len(self.values) for name in self.values[0]}

    def seconds(self) -> float:
        return time.perf_counter() - self.started
