"""report.html: one page with its styles, pictures and script inside; it refers to nothing outside the project's folder."""

from typing import Any

from tasks.reporting import charts, wording
from tasks.reporting.inputs import REFERENCE, TITLES, TRAINED, TUNED, Inputs
from tasks.reporting.samples import sample_answers
from tasks.reporting.templates import template


def render(figures: dict[str, Any], inputs: Inputs) -> str:
    """The page as text."""
    return template("page.html").render(
        figures=figures,
        rows=figures["models"],
        colours=charts.COLOURS,
        titles=TITLES,
        trained=TRAINED,
        headlines=headlines(figures),
        goals=[wording.goal_cells(one) for one in figures["goals"]],
        cap=wording.cap_sentences(figures["cap"]),
        truncation=wording.truncation_sentence(figures["models"]),
        speculation=wording.speculation_sentence(figures["speculation"]),
        categories=wording.category_names(figures),
        trade_off=charts.trade_off_chart(figures),
        by_category=charts.category_chart(figures),
        losses=charts.loss_charts(inputs),
        guessing=charts.speculation_charts(figures),
        questions=sample_answers(inputs),
    )


def headlines(figures: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, figure, remark) of the figures to see first."""
    rows = {row["instance"]: row for row in figures["models"]}
    sft, cap = rows[REFERENCE], figures["cap"]
    found = [
        (
            "SFT score, one token per forward",
            wording.number(sft["one_token"]["score"]["value"]),
            f"95 %: {sft['one_token']['score']['low']:.1f} to {sft['one_token']['score']['high']:.1f}",
        )
    ]
    if gap := rows["finetune_ar"]["difference_to_sft"]:
        found.append(
            ("AR minus SFT, points", f"{gap['value']:+.1f}", f"95 %: {gap['low']:+.1f} to {gap['high']:+.1f}, paired")
        )
    ratio = cap["ratios"].get(REFERENCE)
    value = f"{ratio['value']:.2f}x" if ratio else wording.NONE
    found.append(
        ("CAP's parallelism / SFT's, equal quality", value, {"holds": "claim holds"}.get(cap["claim"], cap["claim"]))
    )
    tuned = rows[TUNED]["threshold"]
    if wording.nested(tuned, "tokens_per_forward"):
        both = f"SFT {wording.number(wording.nested(sft, 'threshold', 'tokens_per_forward', 'value'), 2)}"
        found.append(
            (
                f"CAP tokens per forward, {wording.point_name(tuned['point'])}",
                wording.number(tuned["tokens_per_forward"]["value"], 2),
                both,
            )
        )
    if speculated := figures["speculation"]["rows"]:
        best = max(speculated, key=lambda row: row["forwards_ratio"])
        identical = wording.share(min(row["identical_fraction"] for row in speculated))
        found.append(
            (
                "speculative decoding, fewer target forwards",
                f"{best['forwards_ratio']:.2f}x",
                f"{identical} identical answers",
            )
        )
    return found
