"""Figures in words and in a text table, the same for the page and for the terminal."""

from typing import Any

from tasks.reporting.inputs import TITLES

NONE = "–"


def number(value: float | None, digits: int = 1) -> str:
    """A number with thousands marked, or a dash."""
    return NONE if value is None else f"{value:,.{digits}f}"


def interval(one: dict[str, float] | None, digits: int = 1) -> str:
    """`72.3 (70.1 to 74.4)`: a value with its 95 % interval."""
    return NONE if not one else f"{one['value']:.{digits}f} ({one['low']:.{digits}f} to {one['high']:.{digits}f})"


def point_name(point: str | None) -> str:
    """How an operating point is called in a sentence."""
    if not point:
        return NONE
    name, _, value = point.partition("=")
    if name == "tokens_per_step":
        return "one token per forward" if value == "1" else f"{value} tokens per step"
    return f"{name} {value}".strip().replace("_", " ")


def cap_sentences(cap: dict[str, Any]) -> list[str]:
    """What the CAP comparison says, claim first."""
    if not cap["chosen"]:
        return [
            f"Not resolved: no operating point of CAP reaches SFT's score at one token per forward minus {cap['margin']:g} "
            "on the validation questions, or there was no validation split to choose on."
        ]
    heading = {
        "holds": "CAP reveals more tokens per forward than SFT and both controls, at equal quality.",
        "does not hold": "CAP is not ahead of SFT and both controls at equal quality.",
        "not resolved": "Not resolved: these questions cannot tell whether CAP is ahead at equal quality.",
    }[cap["claim"]]
    sentences = [heading]
    for rival, one in cap["ratios"].items():
        sentences.append(
            f"Tokens per forward, CAP ({point_name(one['first'])}) / {TITLES[rival]} ({point_name(one['second'])}): "
            f"{interval(one, 2)}, {one['verdict']} ({one['method']})."
        )
    sentences += [unreached_sentence(rival, one) for rival, one in cap["unreached"].items()]
    score = cap["score"]
    sentences.append(
        f"Score there minus SFT's at one token per forward, on test questions: {interval(score)} points; at most "
        f"{cap['margin']:g} lost: {score['verdict']} ({score['method']})."
    )
    return sentences


def unreached_sentence(rival: str, one: dict[str, Any]) -> str:
    """What a rival without a point of equal quality reached, and what follows from it."""

    def reached(point: dict[str, Any]) -> str:
        parallelism = point["tokens_per_forward"]["value"]
        return f"{interval(point['score'])} at {parallelism:.2f} tokens per forward ({point_name(point['point'])})"

    best, parallel = one["best"], one["as_parallel"]
    also = f", among points as parallel as CAP {reached(parallel)}" if parallel and parallel != best else ""
    claim = "CAP is above it" if one["verdict"] == "more parallel" else "whether CAP is above it is not resolved"
    return (
        f"{TITLES[rival]} reaches the required {one['required']:.1f} points at none of its operating points: at best "
        f"{reached(best)}{also}, on validation questions; {claim}."
    )


def goal_cells(one: dict[str, Any]) -> list[str]:
    """What, measured, goal, published, verdict."""
    digits = 1 if one["unit"] == "points" else 2
    unit = {"x": "x", "points": " points", "": ""}[one["unit"]]
    measured = interval(one["measured"], digits) + (unit if one["measured"] else "")
    verdict = f"{one['verdict']}; {one['remark']}" if one["remark"] else one["verdict"]
    return [one["what"], measured, f"at least {one['least']:g}{unit}", one["published"] or NONE, verdict]


def speculation_sentence(speculation: dict[str, Any]) -> str:
    """Whether output stayed the same, and the most that was saved under each policy."""
    rows = speculation["rows"]
    if not rows:
        return "Speculative decoding was asked for nothing (speculate.policies or its sources are empty)."
    identical = min(row["identical_fraction"] for row in rows)
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["policy"] not in best or row["forwards_ratio"] > best[row["policy"]]["forwards_ratio"]:
            best[row["policy"]] = row
    saved = "; ".join(
        f"{row['forwards_ratio']:.2f}x under {policy.replace('_', ' ')} "
        f"({TITLES.get(row['target'], row['target'])}, {row['source']}, "
        f"depth {'up to ' * row.get('adaptive', False)}{row['depth']})"
        for policy, row in best.items()
    )
    return f"{share(identical)} of answers identical; fewer target forwards, at best: {saved}."


def truncation_sentence(rows: list[dict[str, Any]]) -> str:
    """Which models could not read the whole of every prompt; empty where all could."""
    cut = [f"{row['title']} {row['truncated_prompts']}" for row in rows if row["truncated_prompts"]]
    return f"Prompts that did not fit the context and lost their beginning: {', '.join(cut)}." if cut else ""


def share(fraction: float) -> str:
    """Percent that never rounds up to 100."""
    percent = 100 * fraction
    return f"{percent:.0f} %" if percent in (0, 100) else f"{min(percent, 99.9):.1f} %"


def as_text(figures: dict[str, Any]) -> str:
    """table.txt: the comparison, scores by category, and the two verdicts."""
    rows = figures["models"]
    threshold = next((point_name(row["threshold"]["point"]) for row in rows if row["threshold"]), "threshold")
    many = next((point_name(row["many_tokens"]["point"]) for row in rows if row["many_tokens"]), "many tokens")
    head = [
        "model", "parameters", "bits/byte", "score (95 %)", threshold, "TPF", many, "TPF at equal quality", "x SFT",
    ]  # fmt: skip
    body = [
        [
            row["title"],
            number(row["parameters"], 0),
            number(row["val_bits_per_byte"], 3),
            interval(row["one_token"]["score"]),
            number(nested(row, "threshold", "score", "value")),
            number(nested(row, "threshold", "tokens_per_forward", "value"), 2),
            number(nested(row, "many_tokens", "score", "value")),
            equal_quality(row["equal_quality"]),
            number(nested(row, "equal_quality", "ratio_to_sft"), 2),
        ]
        for row in rows
    ]
    categories = category_names(figures)
    by_category = [
        [row["title"], *(number(row["categories"].get(name, {}).get("value")) for name in categories)] for row in rows
    ]
    return "\n".join(
        [
            f"Unmask, preset {figures['preset']}: score of {rows[0]['one_token']['items']} test questions, in percent, one token "
            "per forward unless said; TPF = tokens per forward.",
            "",
            *columns([head, *body]),
            "",
            *columns([["model", *categories], *by_category]),
            *filter(None, [truncation_sentence(rows)]),
            "",
            "CAP: " + "\n     ".join(cap_sentences(figures["cap"])),
            "Speculative decoding: " + speculation_sentence(figures["speculation"]),
            *("{0}: {1}, {2}: {4}".format(*goal_cells(one)) for one in figures["goals"]),
            "",
        ]
    )


def nested(value: Any, *keys: str) -> Any:
    """The value under a path of keys; None where a part of the path is None."""
    for key in keys:
        if value is None:
            return None
        value = value[key]
    return value


def equal_quality(one: dict[str, Any] | None) -> str:
    """`3.41 (threshold 0.80)`."""
    return NONE if not one else f"{one['tokens_per_forward']:.2f} ({point_name(one['chosen'])})"


def category_names(figures: dict[str, Any]) -> list[str]:
    """Every category that some model was scored in."""
    return sorted({name for row in figures["models"] for name in row["categories"]})


def columns(rows: list[list[str]]) -> list[str]:
    """Lines of a table with a rule under its head; the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * sum(widths, 2 * (len(widths) - 1)), *lines[1:]]
