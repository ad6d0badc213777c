"""Answers one question with several models side by side, and shows in which order the tokens appeared.

    python -m tasks.ask "Mira has 3 boxes with 14 pens each. How many pens has she?"
    python -m tasks.ask - < question.txt
    python -m tasks.ask "..." --models data/models/finetune_ar data/models/tune_cap --policy tokens_per_step --tokens 8

Without --models: the fine-tuned AR and diffusion models, and the CAP-tuned one where it exists. A causal model decodes left to
right whatever the policy.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.environment import quiet
from tasks.reporting.samples import Piece, cut, text_of_tokens

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

NEEDED, OPTIONAL = ("finetune_ar", "finetune_diffusion"), ("tune_cap",)
BAD_INPUT = 2
# Options of every policy; a policy refuses what it has no use for.
POLICIES = {
    "threshold": ("threshold",),
    "one_token": (),
    "tokens_per_step": ("tokens",),
    "fixed_steps": ("steps",),
    "hybrid": ("threshold", "steps"),
}
DEFAULTS = {"threshold": 0.9, "tokens": 8, "steps": 8}
# 256-colour backgrounds from early to late, readable under black letters.
EARLY_TO_LATE = (231, 195, 159, 153, 117, 111, 75)


@dataclass(frozen=True)
class Answer:
    """One model's answer, with what it cost."""

    model: str
    is_causal: bool
    text: str
    pieces: list[Piece]
    tokens: int
    forwards: int
    seconds: float


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 2 after one message on stderr about what a person can mend."""
    quiet()
    options = parse(arguments)
    try:
        question = (sys.stdin.read() if options.question == "-" else options.question).strip()
        if not question:
            raise ValueError(
                'the question is empty; write it in quotes, or give - and type it, for example: echo "..." | …'
            )
        policy = policy_of(options)
        folders = options.models or default_models(Path("data/models"))
        answers = [ask(folder, question, policy, options.max_new_tokens) for folder in folders]
    except ValueError as error:
        print(f"ask: {error}", file=sys.stderr)
        return BAD_INPUT
    from rich.console import Console

    show(Console(highlight=False, soft_wrap=not sys.stdout.isatty()), question, answers, policy)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tasks.ask", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("question", help="the question, or - to read it from stdin (several lines are one question)")
    parser.add_argument("--models", nargs="+", type=Path, metavar="FOLDER", help="checkpoint folders to ask")
    parser.add_argument(
        "--policy", default="threshold", choices=sorted(POLICIES), help="how a diffusion model reveals tokens"
    )
    parser.add_argument("--threshold", type=float, help="confidence to reveal at (default 0.9)")
    parser.add_argument("--tokens", type=int, help="of tokens_per_step (default 8)")
    parser.add_argument("--steps", type=int, help="steps per block, of fixed_steps and hybrid (default 8)")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="longest answer (default 128)")
    return parser.parse_args(arguments)


def policy_of(options: argparse.Namespace) -> dict[str, Any]:
    """The policy's description for `make_decoder`; ValueError for an option that it does not have."""
    wanted = POLICIES[options.policy]
    for name in DEFAULTS:
        if getattr(options, name) is not None and name not in wanted:
            raise ValueError(
                f"--{name} means nothing to --policy {options.policy}: leave it out, or choose another policy"
            )
    given = {name: getattr(options, name) for name in wanted}
    return {"name": options.policy} | {
        name: DEFAULTS[name] if value is None else value for name, value in given.items()
    }


def default_models(folder: Path) -> list[Path]:
    """The fine-tuned models; ValueError when one has not been trained yet."""
    missing = [name for name in NEEDED if not (folder / name / "config.json").is_file()]
    if missing:
        raise ValueError(
            f"{' and '.join(f'{folder}/{name}' for name in missing)} not trained yet: `make run` trains all models, or name "
            "checkpoint folders with --models"
        )
    return [folder / name for name in (*NEEDED, *OPTIONAL) if (folder / name / "config.json").is_file()]


def ask(folder: Path, question: str, policy: dict[str, Any], max_new_tokens: int) -> Answer:
    """The answer of the checkpoint in `folder`; seconds are of decoding alone."""
    from model.checkpoints.store import load_checkpoint
    from model.samplers.decode import make_decoder
    from model.text.tokenizer import load_tokenizer

    if max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens is {max_new_tokens}; it must be at least 1")
    checkpoint = load_checkpoint(folder)
    tokenizer = load_tokenizer(folder)
    decode = make_decoder(checkpoint.network, policy, 1)
    turns = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    room = checkpoint.config.maximum_positions - len(prompt) - checkpoint.config.block_tokens
    if room < 1:
        raise ValueError(
            f"the question has {len(prompt)} tokens, and {folder} reads at most {checkpoint.config.maximum_positions} with its "
            "answer: shorten it"
        )
    started = time.perf_counter()
    (decoded,) = decode([prompt], min(max_new_tokens, room))
    seconds = time.perf_counter() - started
    record = {"tokens": decoded.tokens, "revealed_at": decoded.revealed_at, "confidence": decoded.confidence}
    return Answer(
        folder.name,
        checkpoint.config.attention == "causal",
        tokenizer.decode(decoded.tokens, skip_special_tokens=True).strip(),
        cut(record, text_of_tokens(folder / "tokenizer.json")),
        len(decoded.tokens),
        decoded.target_forwards,
        seconds,
    )


def show(console: "Console", question: str, answers: list[Answer], policy: dict[str, Any]) -> None:
    """The answers side by side, figures below; colours where the output is a terminal, numbers where it is not."""
    from rich.table import Table
    from rich.text import Text

    described = " ".join(str(value) for value in policy.values()).replace("_", " ")
    console.print(Text(question, style="bold"), "")
    if console.is_terminal:
        table = Table(expand=True, show_lines=True)
        for answer in answers:
            table.add_column(Text(heading(answer, described)), ratio=1)
        table.add_row(*(in_order(answer) for answer in answers))
        table.add_row(*(Text(figures(answer)) for answer in answers))
        console.print(table)
        legend = Text("revealed early ")
        for colour in EARLY_TO_LATE:
            legend.append("  ", style=f"on color({colour})")
        console.print(legend.append(" late; ■ ends the answer"))
        return
    for answer in answers:
        console.print(Text(f"{heading(answer, described)}: {answer.text}"))
        console.print(Text(f"  {figures(answer)}"))
        if not answer.is_causal:
            order = " ".join(f"{piece.text.strip() or '␣'}·{piece.revealed_at}" for piece in answer.pieces)
            console.print(Text(f"  token·forward that revealed it: {order}".replace("\n", "↵")))
        console.print("")


def heading(answer: Answer, described: str) -> str:
    """`tune_cap (threshold 0.9)`."""
    return f"{answer.model} ({'left to right' if answer.is_causal else described})"


def figures(answer: Answer) -> str:
    """One line of what the answer cost."""
    return (
        f"{answer.tokens} tokens, {answer.forwards} forwards, {answer.tokens / answer.forwards:.2f} tokens per forward, "
        f"{answer.seconds:.2f} s"
    )


def in_order(answer: Answer) -> "Text":
    """The answer, a diffusion model's tokens shaded by when they appeared."""
    from rich.text import Text

    text = Text()
    for piece in answer.pieces:
        late = (piece.revealed_at - 1) * len(EARLY_TO_LATE) // max(answer.forwards, 1)
        style = "" if answer.is_causal else f"black on color({EARLY_TO_LATE[min(late, len(EARLY_TO_LATE) - 1)]})"
        text.append("■" if piece.is_end else piece.text, style=style)
    return text


if __name__ == "__main__":
    sys.exit(main())
