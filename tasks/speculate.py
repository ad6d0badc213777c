"""Decodes benchmark prompts plainly and speculatively, shows that the output is the same, and counts what was saved.

    python -m tasks.speculate

Guesses come from the distilled draft (`draft`), from the target's own last logits (`stale`, costs no forward), or from those
first and then the draft (`both`). Forwards and acceptance go to data/metrics/speculate.json. Times differ from run to run: they
go to MLflow and to data/reports/speculation_costs.json, which nothing tracks: wall clock against plain decoding of the same
target, what forwards cost, and the depth that pays here. A changed answer fails the stage.
"""

import copy
import json
import math
import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from model.benchmarks.settings import EvaluateConfig
from model.benchmarks.suite import load_suite
from model.checkpoints.store import Checkpoint, load_checkpoint
from model.network.transformer import num_parameters
from model.samplers.decode import make_decoder
from model.samplers.results import Decoded, flop_speed_up
from model.text.tokenizer import load_tokenizer
from tasks.draft_agreement import agreement
from tasks.guessing import DRAFT, SpeculateConfig, make_guesser
from tasks.speculation_costs import costs_of, measure_costs
from tasks.stage import Stage, run_stage
from tasks.training import publish_metrics, source_of

TARGETS = ("finetune_diffusion", "tune_cap")
COSTS_FILE = "data/reports/speculation_costs.json"


@dataclass(frozen=True)
class Setting:
    """One way to speculate."""

    target: str
    policy: str
    source: str
    depth: int
    adaptive: bool = False  # up to `depth`, as the acceptance so far suggests

    @property
    def label(self) -> str:
        """The name of its curves in MLflow; the depth is the step."""
        return f"spec/{self.target}/{self.policy}/{self.source}{'_adaptive' if self.adaptive else ''}"


class Decoding:
    """Decodes the same prompts again and again."""

    def __init__(self, models: dict[str, Checkpoint], prompts: list[list[int]], config: SpeculateConfig) -> None:
        self.models, self.prompts, self.config = models, prompts, config

    def run(
        self, target: str, policy: str, source: str | None = None, depth: int = 1, adaptive: bool = False
    ) -> tuple[list[Decoded], float]:
        """Answers and seconds, plain without a source."""
        config, model, draft = self.config, self.models[target], self.models[DRAFT]
        guesser = None
        if source:
            guesser = make_guesser(source, config.depth(source, depth, adaptive), model, draft, config.width)
        decoder = make_decoder(model.network, config.policies[policy], config.batch_rows, guesser=guesser)
        started = time.perf_counter()
        answers = decoder(self.prompts, config.max_new_tokens)
        return answers, time.perf_counter() - started

    def agreement(self, target: str, policy: str) -> dict[str, float]:
        """How often the draft's first guess is what the target, decoding plainly, reveals."""
        config, steps = self.config, []
        decoder = make_decoder(self.models[target].network, config.policies[policy], config.batch_rows)
        decoder(self.prompts, config.max_new_tokens, observer=steps.append)
        return agreement(self.models[DRAFT].network, self.prompts, steps, config.max_new_tokens, config.batch_rows)

    def doubled(self, indices: list[int]) -> "Decoding":
        """The same in float64, for some of the prompts."""
        models = {
            name: Checkpoint(copy.deepcopy(one.network).double(), one.config, one.folder)
            for name, one in self.models.items()
        }
        return Decoding(models, [self.prompts[index] for index in indices], self.config)


def speculate(stage: Stage) -> None:
    """Every target x policy x guess source x depth, against plain decoding of the same target in the same run."""
    config = SpeculateConfig.from_section(stage.section)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    given = config.start_from or {}
    if unknown := sorted(set(given) - {*TARGETS, DRAFT}):
        raise ValueError(f"speculate.start_from names {', '.join(unknown)}; it may name {', '.join((*TARGETS, DRAFT))}")
    models = {name: load_checkpoint(source_of(stage, given.get(name), name), device) for name in (*TARGETS, DRAFT)}
    prompts = benchmark_prompts(stage, models[TARGETS[0]], config)
    decoding = Decoding(models, prompts, config)
    share = num_parameters(models[DRAFT].network) / num_parameters(models[TARGETS[0]].network)
    rows: list[dict[str, Any]] = []
    timed: list[dict[str, Any]] = []
    agreements: list[dict[str, Any]] = []
    for target in TARGETS:
        costs = [
            measure_costs(models[target].network, models[DRAFT].network, prompts[:count], config.depths)
            for count in sorted({1, min(config.batch_rows, len(prompts))})
        ]
        for policy in config.policies:
            plain, plain_seconds = decoding.run(target, policy)
            agreed = decoding.agreement(target, policy)
            agreements.append({"target": target, "policy": policy, **agreed})
            stage.tracker.log_metrics(
                {
                    f"spec/{target}/{policy}/plain_seconds": plain_seconds,
                    f"spec/{target}/{policy}/agreement": agreed["value"],
                }
            )
            for source in config.sources:
                for setting in settings(target, policy, source, config):
                    found, seconds = decoding.run(**vars(setting))
                    check_identical(decoding, setting, plain, found)
                    rows.append(compare(setting, plain, found, share))
                    fitted = [costs_of(one, rows[-1], max(config.depths)) for one in costs]
                    timed.append({**vars(setting), "wall_clock": plain_seconds / seconds, "models": fitted})
                    track(stage, setting, rows[-1], timed[-1])
                    print(summary(rows[-1], timed[-1]), flush=True)
    write_costs(stage, timed)
    figures = {"num_prompts": len(prompts), "max_new_tokens": config.max_new_tokens, "width": config.width}
    publish_metrics(stage, stage.name, figures | {"rows": rows, "agreement": agreements})


def settings(target: str, policy: str, source: str, config: SpeculateConfig) -> list[Setting]:
    """Every fixed depth, and the one that adapts where it is asked for."""
    fixed = [Setting(target, policy, source, depth) for depth in sorted(config.depths)]
    return fixed + [replace(fixed[-1], adaptive=True)] * (config.adaptive_depth is not None)


def benchmark_prompts(stage: Stage, target: Checkpoint, config: SpeculateConfig) -> list[list[int]]:
    """The first test questions of every benchmark in evaluate.tasks, through the chat template.

    Prompts too long for the context are left out (evaluate cuts them; here nothing is scored) and their number is printed.
    """
    evaluation = EvaluateConfig.from_section(stage.params["evaluate"])
    suite = load_suite(
        evaluation.tasks,
        "test",
        folder=stage.root / "data/raw/benchmarks",
        judge=lambda row, text: False,
        max_new_tokens=config.max_new_tokens,
        limit=config.prompts_per_benchmark,
        local=evaluation.local,
        num_fewshot=evaluation.num_fewshot,
    )
    tokenizer = load_tokenizer(str(target.folder))
    limit = target.config.maximum_positions - config.max_new_tokens
    questions = [
        task.doc_to_text(document)
        for task in suite.tasks
        for document in list(task.eval_docs)[: config.prompts_per_benchmark]
    ]
    turns = [[{"role": "user", "content": question}] for question in questions]
    asked = [
        tokenizer.apply_chat_template(t, add_generation_prompt=True, tokenize=True, return_dict=False) for t in turns
    ]
    prompts = [prompt for prompt in asked if len(prompt) <= limit]
    if len(prompts) < len(asked):
        left_out = len(asked) - len(prompts)
        print(f"{stage.name}: {left_out} of {len(asked)} prompts are longer than {limit} tokens: left out", flush=True)
    if not prompts:
        raise ValueError(
            f"speculate: every prompt is longer than {limit} tokens (network.maximum_positions less speculate.max_new_tokens)"
        )
    return prompts


def check_identical(decoding: Decoding, setting: Setting, plain: list[Decoded], found: list[Decoded]) -> None:
    """RuntimeError where an answer changed: speculation may cost time, never a token.

    Forwards over different numbers of rows round differently, which can flip a near-tie; what float64 decodes alike is that and
    not an error of logic. On a GPU such flips are counted; on a CPU they fail the stage, too.
    """
    changed = [index for index, (a, b) in enumerate(zip(plain, found, strict=True)) if a.tokens != b.tokens]
    if not changed:
        return
    exact = decoding.doubled(changed)
    before, _ = exact.run(setting.target, setting.policy)
    after, _ = exact.run(**vars(setting))
    is_rounding = all(a.tokens == b.tokens for a, b in zip(before, after, strict=True))
    if is_rounding and next(decoding.models[setting.target].network.parameters()).is_cuda:
        return
    gap = min(min(plain[index].smallest_gap, plain[index].smallest_margin) for index in changed)
    raise RuntimeError(
        f"{setting}: {len(changed)} of {len(plain)} answers changed, first of prompt {changed[0]}; in float64 they "
        f"{'are the same: rounding' if is_rounding else 'differ, too: an error of logic'}; smallest margin {gap:.3g}"
    )


def compare(setting: Setting, plain: list[Decoded], found: list[Decoded], draft_share: float) -> dict[str, Any]:
    """One row of the result: what was saved, at what cost, and whether anything changed."""
    tokens = sum(len(answer.tokens) for answer in plain)
    before, after = total(plain, "target_forwards"), total(found, "target_forwards")
    tried = {d: total(found, f"tried_{d}") for d in range(1, setting.depth + 1)}
    matched = {d: total(found, f"matched_{d}") for d in tried}
    return {
        **vars(setting),
        "identical_fraction": sum(a.tokens == b.tokens for a, b in zip(plain, found, strict=True)) / len(plain),
        "plain_target_forwards": before,
        "target_forwards": after,
        "forwards_ratio": round(before / after, 4),
        "prefill_forwards": total(found, "prefill_forwards"),
        "wasted_forwards": total(found, "wasted_forwards"),
        "draft_forwards": total(found, "draft_forwards"),
        "rows_verified": total(found, "rows_verified"),
        "mean_depth": round(total(found, "rows_verified") / after - 1, 4),
        "acceptance": {str(d): round(matched[d] / n, 4) for d, n in tried.items() if n},
        "match_probability": round(sum(matched.values()) / max(sum(tried.values()), 1), 4),
        "flop_speed_up": round(flop_speed_up(plain, found, draft_share), 4),
        "plain_tpf": round(tokens / before, 4),
        "tpf": round(tokens / after, 4),
        "smallest_gap": finite(min(answer.smallest_gap for answer in plain)),
        "smallest_margin": finite(min(answer.smallest_margin for answer in plain)),
    }


def finite(margin: float) -> float | None:
    """A margin for JSON; None where nothing was ever decided between."""
    return round(margin, 9) if math.isfinite(margin) else None


def total(answers: list[Decoded], counter: str) -> int:
    """A counter summed over answers."""
    return sum(answer.counters.get(counter, 0) for answer in answers)


def track(stage: Stage, setting: Setting, row: dict[str, Any], timed: dict[str, Any]) -> None:
    """Curves over the depth, in MLflow."""
    values = {
        "forwards_ratio": row["forwards_ratio"],
        "match_probability": row["match_probability"],
        "wall_clock_ratio": timed["wall_clock"],
        "flop_speed_up": row["flop_speed_up"],
    }
    if str(setting.depth) in row["acceptance"]:
        values["acceptance"] = row["acceptance"][str(setting.depth)]
    for model in timed["models"]:
        rows = f"rows_{model['rows']}"
        values |= {
            f"{rows}/predicted_speed_up": model["predicted"],
            f"{rows}/recommended_depth": float(model["recommended_depth"]),
            f"{rows}/verify_cost": model["verify"][str(setting.depth)],
            f"{rows}/draft_cost": model["draft"],
        }
    stage.tracker.log_metrics(
        {f"{setting.label}/{name}": float(value) for name, value in values.items()}, setting.depth
    )


def write_costs(stage: Stage, timed: list[dict[str, Any]]) -> None:
    """Times as a file beside the report that no other file depends on."""
    made = stage.work / "costs.json"
    made.write_text(json.dumps(timed, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    stage.tracker.log_artifact(stage.publish(made, COSTS_FILE))


def summary(row: dict[str, Any], timed: dict[str, Any]) -> str:
    """One line for the log."""
    models = "; ".join(
        f"{model['rows']} row(s): predicted {model['predicted']:.2f}x, best depth {model['recommended_depth']} "
        f"({model['recommended_speed_up']:.2f}x)"
        for model in timed["models"]
    )
    depth = f"{'up to ' * row['adaptive']}{row['depth']}"
    return (
        f"{row['target']} {row['policy']} {row['source']} depth {depth}: identical {row['identical_fraction']:.1%}, "
        f"target forwards {row['plain_target_forwards']} -> {row['target_forwards']} ({row['forwards_ratio']:.2f}x fewer), "
        f"wall clock {timed['wall_clock']:.2f}x, matches {row['match_probability']:.0%}; {models}"
    )


if __name__ == "__main__":
    run_stage(speculate, "speculate")
