"""Decodes benchmark prompts plainly and speculatively, shows that the output is the same, and counts what was saved.

    python -m tasks.speculate

Guesses come from the distilled draft (`draft`) or from the target's own last logits (`stale`, costs no forward). Forwards and
acceptance go to data/metrics/speculate.json; seconds, which differ from run to run, go to MLflow only.
"""

import time
from typing import Any

from model.benchmarks.settings import EvaluateConfig
from model.benchmarks.suite import load_suite
from model.checkpoints.store import Checkpoint, load_checkpoint
from model.samplers.decode import make_decoder
from model.samplers.guesses import DraftGuesser, Guesser, StaleGuesser
from model.samplers.results import Decoded
from model.text.tokenizer import load_tokenizer
from tasks.parameters import check_keys
from tasks.stage import Stage, run_stage
from tasks.training import publish_metrics

TARGETS = ("finetune_diffusion", "tune_cap")
DRAFT = "distill_draft"
KEYS = ("prompts_per_benchmark", "max_new_tokens", "batch_rows", "policies", "sources", "depths")


def speculate(stage: Stage) -> None:
    """Every target x policy x guess source x depth, against plain decoding of the same target in the same run."""
    section = stage.section
    check_keys("speculate", section, KEYS)
    models = {name: load_checkpoint(stage.root / "data/models" / name) for name in (*TARGETS, DRAFT)}
    prompts = benchmark_prompts(stage, models[TARGETS[0]])
    rows: list[dict[str, Any]] = []
    for target in TARGETS:
        for policy_name, policy in section["policies"].items():
            plain, plain_seconds = decode(models[target], policy, None, prompts, section)
            stage.tracker.log_metrics({f"spec/{target}/{policy_name}/plain_seconds": plain_seconds})
            for source in section["sources"]:
                for depth in section["depths"]:
                    guesser = make_guesser(source, depth, models[target], models[DRAFT])
                    found, seconds = decode(models[target], policy, guesser, prompts, section)
                    rows.append(compare(target, policy_name, source, depth, plain, found))
                    label = f"spec/{target}/{policy_name}/{source}"
                    values = {"forwards_ratio": rows[-1]["forwards_ratio"], "wall_clock_ratio": plain_seconds / seconds}
                    stage.tracker.log_metrics({f"{label}/{key}": value for key, value in values.items()}, step=depth)
                    print(summary(rows[-1], plain_seconds / seconds), flush=True)
    publish_metrics(
        stage, stage.name, {"num_prompts": len(prompts), "max_new_tokens": section["max_new_tokens"], "rows": rows}
    )


def benchmark_prompts(stage: Stage, target: Checkpoint) -> list[list[int]]:
    """The first test questions of every benchmark in evaluate.tasks, through the chat template.

    Prompts too long for the context are left out (evaluate cuts them; here nothing is scored) and their number is printed.
    """
    evaluation = EvaluateConfig.from_section(stage.params["evaluate"])
    suite = load_suite(
        evaluation.tasks,
        "test",
        folder=stage.root / "data/raw/benchmarks",
        judge=lambda row, text: False,
        max_new_tokens=stage.section["max_new_tokens"],
        limit=stage.section["prompts_per_benchmark"],
        local=evaluation.local,
        num_fewshot=evaluation.num_fewshot,
    )
    tokenizer = load_tokenizer(str(target.folder))
    limit = target.config.maximum_positions - stage.section["max_new_tokens"]
    asked = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": task.doc_to_text(document)}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
        for task in suite.tasks
        for document in list(task.eval_docs)[: stage.section["prompts_per_benchmark"]]
    ]
    prompts = [prompt for prompt in asked if len(prompt) <= limit]
    if len(prompts) < len(asked):
        print(
            f"{stage.name}: {len(asked) - len(prompts)} of {len(asked)} prompts are longer than {limit} tokens: left out"
        )
    if not prompts:
        raise ValueError(
            f"speculate: every prompt is longer than {limit} tokens (network.maximum_positions less speculate.max_new_tokens)"
        )
    return prompts


def make_guesser(source: str, depth: int, target: Checkpoint, draft: Checkpoint) -> Guesser:
    """The named source of guesses; ValueError for an unknown name."""
    if source == "stale":
        return StaleGuesser(depth)
    if source == "draft":
        return DraftGuesser(draft.network, target.network, depth)
    raise ValueError(f"speculate.sources holds '{source}': it must be draft or stale")


def decode(
    model: Checkpoint, policy: dict, guesser: Guesser | None, prompts, section: dict
) -> tuple[list[Decoded], float]:
    """Answers and seconds."""
    decoder = make_decoder(model.network, policy, batch_rows=section["batch_rows"], guesser=guesser)
    started = time.perf_counter()
    answers = decoder(prompts, section["max_new_tokens"])
    return answers, time.perf_counter() - started


def compare(
    target: str, policy: str, source: str, depth: int, plain: list[Decoded], found: list[Decoded]
) -> dict[str, Any]:
    """One row of the result: what was saved, at what cost, and whether anything changed (it must not)."""
    tokens = sum(len(answer.tokens) for answer in plain)
    before, after = total(plain, "target_forwards"), total(found, "target_forwards")
    tried = {d: total(found, f"tried_{d}") for d in range(1, depth + 1)}
    return {
        "target": target,
        "policy": policy,
        "source": source,
        "depth": depth,
        "identical_fraction": sum(a.tokens == b.tokens for a, b in zip(plain, found, strict=True)) / len(plain),
        "plain_target_forwards": before,
        "target_forwards": after,
        "forwards_ratio": round(before / after, 4),
        "plain_commit_forwards": total(plain, "commit_forwards"),
        "commit_forwards": total(found, "commit_forwards"),
        "draft_forwards": total(found, "draft_forwards"),
        "rows_verified": total(found, "rows_verified"),
        "acceptance": {str(d): round(total(found, f"matched_{d}") / n, 4) for d, n in tried.items() if n},
        "plain_tpf": round(tokens / before, 4),
        "tpf": round(tokens / after, 4),
        "smallest_gap": round(min(answer.smallest_gap for answer in plain), 9),
    }


def total(answers: list[Decoded], counter: str) -> int:
    """A counter summed over answers."""
    return sum(answer.counters.get(counter, 0) for answer in answers)


def summary(row: dict[str, Any], wall_clock_ratio: float) -> str:
    """One line for the log."""
    return (
        f"{row['target']} {row['policy']} {row['source']} depth {row['depth']}: identical {row['identical_fraction']:.1%}, "
        f"target forwards {row['plain_target_forwards']} -> {row['target_forwards']} ({row['forwards_ratio']:.2f}x fewer), "
        f"wall clock {wall_clock_ratio:.2f}x, acceptance {row['acceptance']}"
    )


if __name__ == "__main__":
    run_stage(speculate, "speculate")
