"""The model card of an export: README.md with the hub's metadata, what was measured, what it is for, its limits, its lineage."""

from dataclasses import dataclass, field
from typing import Any

from model.network.config import NetworkConfig

READING = {
    "causal": "autoregressive: it reads from left to right and predicts the next token",
    "bidirectional": "masked diffusion: it reads in both directions and fills hidden tokens",
    "block_causal": "block diffusion: it reads in blocks, from left to right, and fills the hidden tokens of a block together",
}


@dataclass(frozen=True)
class CardFacts:
    """What the pipeline knows about a checkpoint. `lineage`: name -> value; `points`: rows of measured operating points;
    `training`: last numbers of the training run."""

    name: str
    config: NetworkConfig
    parameters: int
    layout: str
    lineage: dict[str, str] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=list)
    training: dict[str, float] = field(default_factory=dict)
    base_model: str | None = None  # only where it is a model of the hub


def model_card(facts: CardFacts) -> str:
    """The whole README.md."""
    sections = (_metadata(facts), _summary(facts), _measured(facts), _use(facts), _limits(facts), _lineage(facts))
    return "\n".join(sections)


def _metadata(facts: CardFacts) -> str:
    kind = "autoregressive" if facts.config.attention == "causal" else "diffusion-language-model"
    lines = ["library_name: transformers", "pipeline_tag: text-generation", f"tags: [unmask, {kind}]"]
    lines += [f"base_model: {facts.base_model}"] if facts.base_model else []
    return "\n".join(("---", *lines, "---", ""))


def _summary(facts: CardFacts) -> str:
    config = facts.config
    size = f"{config.num_layers} layers of width {config.hidden_size}, vocabulary {config.embedding_rows}"
    mixture = (
        f", {config.num_experts} experts of which {config.experts_per_token} answer a token"
        if config.num_experts
        else ""
    )
    return (
        f"# {facts.name}\n\nA language model made with Unmask, {READING[config.attention]}. {facts.parameters:,} parameters: "
        f"{size}{mixture}. Files in the layout `{facts.layout}`.\n"
    )


def _measured(facts: CardFacts) -> str:
    lines = ["## Measured", ""]
    if facts.points:
        lines += ["| decoding | questions | score of 100 (95 % interval) | tokens per forward |", "|---|---|---|---|"]
        lines += [_row(point) for point in facts.points]
    else:
        lines += ["This checkpoint has not been evaluated by the pipeline that exported it: no score is claimed."]
    if facts.training:
        lines += [
            "",
            "At the end of training: " + ", ".join(f"{k} {v:.4g}" for k, v in sorted(facts.training.items())) + ".",
        ]
    return "\n".join((*lines, ""))


def _row(point: dict[str, Any]) -> str:
    score, speed = point["score"], point.get("tokens_per_forward")
    interval = f" ({score['low']:.1f} to {score['high']:.1f})" if "low" in score else ""
    parallel = f"{speed['value']:.2f}" if speed else "-"
    return f"| {point['name']} | {point.get('items', '')} | {score['value']:.1f}{interval} | {parallel} |"


def _use(facts: CardFacts) -> str:
    own = facts.layout == "unmask"
    how = (
        "trust_remote_code=True"
        if own
        else "after `import model.hugging_face.face` of Unmask, or by the family's own code"
    )
    loading = f"AutoModelForCausalLM.from_pretrained(folder{', ' + how if own else ''})" + ("" if own else f"  # {how}")
    return f"""## Use

Research on language modelling, decoding and distillation; a base for fine-tuning on your own data.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = {loading}
ids = tokenizer.apply_chat_template(
    [{{"role": "user", "content": "..."}}], add_generation_prompt=True, return_tensors="pt", return_dict=False
)
answer = model.generate(inputs=ids, eos_early_stop=True, gen_length=128, block_length={facts.config.block_tokens})
print(tokenizer.decode(answer[0]))
```
"""


def _limits(facts: CardFacts) -> str:
    return f"""## Limits

It knows what its training text says and nothing else, and states falsehoods as fluently as facts. It has not been aligned or
filtered for safety: do not put it before people who take its words for advice. Texts longer than {facts.config.maximum_positions}
tokens were never seen. The figures above hold for the benchmarks and decoding settings they were measured with.
"""


def _lineage(facts: CardFacts) -> str:
    rows = [f"| {name} | {value} |" for name, value in facts.lineage.items() if value]
    if not rows:
        return "## Lineage\n\nNot made by a run of this pipeline: nothing is recorded.\n"
    return "\n".join(("## Lineage", "", "| what | which |", "|---|---|", *rows, ""))
