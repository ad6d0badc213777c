"""The validation report: one HTML page with its styles and pictures inside, the same bytes for the same rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from model.corpora.expectations import Outcome
from model.corpora.facts import Totals
from model.corpora.rules import REASONS

_STYLE = """
:root{--ink:#1d2430;--soft:#5d6878;--line:#dde2e9;--paper:#fff;--panel:#f6f8fa;--good:#1a7f4b;--bad:#b42318;--bar:#4a7fb5}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#9aa6b6;--line:#333c49;--paper:#14181e;--panel:#1c222b;
--good:#4cc38a;--bad:#ff8577;--bar:#6fa3d8}a{color:var(--bar)}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);
max-width:72rem;margin:2rem auto;padding:0 1.2rem}
h1{font-size:1.6rem;margin:0 0 .3rem}
h2{font-size:1.2rem;margin:2.2rem 0 .6rem;border-top:1px solid var(--line);padding-top:1.2rem}
h3{font-size:1rem;margin:1.2rem 0 .4rem}p{margin:.3rem 0}.soft{color:var(--soft)}
.verdict{font-weight:600;padding:.7rem 1rem;border-radius:.4rem;background:var(--panel);
border-left:.4rem solid var(--good);margin:1rem 0}.verdict p{font-weight:400;overflow-wrap:anywhere}
.verdict.bad{border-color:var(--bad)}.good{color:var(--good)}.badtext{color:var(--bad)}
table{border-collapse:collapse;width:100%;margin:.5rem 0}
th,td{text-align:left;padding:.35rem .6rem;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--soft);font-weight:600;font-size:.85rem}
td.number,th.number{text-align:right;font-variant-numeric:tabular-nums}
code{font:.88em ui-monospace,monospace;background:var(--panel);padding:.05rem .3rem;border-radius:.2rem;overflow-wrap:anywhere}
.wide{overflow-x:auto}svg{max-width:100%;height:auto;display:block}
td:first-child code{white-space:nowrap}svg text{fill:var(--soft);font:11px system-ui,sans-serif}svg rect{fill:var(--bar)}
"""


@dataclass
class CorpusReport:
    """Everything the page says of one corpus."""

    kind: str
    name: str
    source: str
    weight: float
    totals: Totals
    outcomes: Sequence[Outcome]
    problems: Sequence[str]

    @property
    def title(self) -> str:
        """The name the manifest gives it, as in pretrain/world."""
        return self.name if self.kind == "benchmarks" else f"{self.kind}/{self.name}"


def render(reports: Sequence[CorpusReport]) -> str:
    """The page as text; it refers to nothing outside itself."""
    problems = [problem for report in reports for problem in report.problems]
    verdict = f"Stopped: {len(problems)} problem{'s' * (len(problems) > 1)}." if problems else "Everything passed."
    listed = "".join(f"<p>{escape(problem)}</p>" for problem in problems)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Validation of the training text</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>\n'
        "<h1>Validation of the training text</h1>"
        '<p class="soft">Row rules decide about each row; Great Expectations suites decide about the corpus. '
        "Refused rows stand in <code>data/quarantine</code> with file, line and reason.</p>"
        f'<div class="verdict{" bad" if problems else ""}">{verdict}{listed}</div>\n'
        f"{_overview(reports)}\n" + "\n".join(_section(report) for report in reports) + "\n</body></html>\n"
    )


def _overview(reports: Sequence[CorpusReport]) -> str:
    rows = []
    for report in reports:
        totals, passed = report.totals, not report.problems
        rows.append(
            f'<tr><td><a href="#{escape(report.title)}">{escape(report.title)}</a></td><td>{escape(report.source)}</td>'
            f'<td class="number">{"" if report.kind == "benchmarks" else f"{report.weight:g}"}</td>'
            + "".join(
                f'<td class="number">{value}</td>'
                for value in (
                    f"{totals.rows:,}",
                    f"{totals.kept:,}",
                    f"{totals.quarantined.total():,}",
                    _share(totals.bad_fraction),
                    _share(totals.duplicate_fraction),
                    f"{totals.characters:,}",
                )
            )
            + f"<td>{_mark(passed)}</td></tr>"
        )
    heads = ("rows", "kept", "quarantined", "bad", "duplicate", "characters kept")
    return (
        '<div class="wide"><table><tr><th>corpus</th><th>source</th><th class="number">weight</th>'
        + "".join(f'<th class="number">{head}</th>' for head in heads)
        + f"<th>verdict</th></tr>{''.join(rows)}</table></div>"
    )


def _section(report: CorpusReport) -> str:
    totals = report.totals
    parts = [f'<h2 id="{escape(report.title)}">{escape(report.title)} {_mark(not report.problems)}</h2>']
    if totals.scripts:
        shares = ", ".join(f"{name} {_share(n / totals.kept)}" for name, n in totals.scripts.most_common())
        parts.append(f'<p class="soft">{totals.words:,} words in {totals.kept:,} rows; scripts: {shares}.</p>')
    if totals.blank_lines:
        parts.append(f'<p class="soft">{totals.blank_lines:,} blank lines between the rows were passed over.</p>')
    parts.append(_quarantine(totals))
    if totals.lengths:
        parts.append(f"<h3>Characters per kept row</h3>{_histogram(totals)}")
    if report.outcomes:
        parts.append(_expectations(report))
    return "\n".join(parts)


def _quarantine(totals: Totals) -> str:
    if not totals.quarantined:
        return "<p>No row was refused.</p>"
    rows = "".join(
        f'<tr><td><code>{escape(reason)}</code></td><td class="number">{count:,}</td><td>{escape(REASONS[reason])}</td>'
        f"<td><code>{escape(totals.examples[reason])}</code></td></tr>"
        for reason, count in sorted(totals.quarantined.items(), key=lambda item: (-item[1], item[0]))
    )
    head = '<tr><th>reason</th><th class="number">rows</th><th>meaning</th><th>first seen</th></tr>'
    return f'<h3>Refused rows</h3><div class="wide"><table>{head}{rows}</table></div>'


def _expectations(report: CorpusReport) -> str:
    rows = "".join(
        f"<tr><td>{_mark(one.success)}</td><td>{escape(one.asked)}</td><td>{escape(one.seen)}</td>"
        f'<td class="soft">{escape(one.why)}</td></tr>'
        for one in report.outcomes
    )
    head = "<tr><th></th><th>expectation</th><th>observed</th><th>because</th></tr>"
    shards = report.outcomes[0].shards
    title = f"Expectations of data/suites/{report.kind}.json over {shards} shard{'s' * (shards > 1)} of row facts"
    return f'<h3>{title}</h3><div class="wide"><table>{head}{rows}</table></div>'


def _histogram(totals: Totals) -> str:
    """Bars of rows per power of two of characters."""
    powers = range(min(totals.lengths), max(totals.lengths) + 1)
    highest = max(totals.lengths.values())
    width, height, step = 44, 110, 52
    bars = []
    for index, power in enumerate(powers):
        count = totals.lengths[power]
        tall = round(height * count / highest, 1)
        x, top = 8 + index * step, 18 + height - tall
        bars.append(
            f'<rect x="{x}" y="{top:.1f}" width="{width}" height="{tall:.1f}"><title>{count} rows of {2**power} to '
            f"{2 ** (power + 1) - 1} characters</title></rect>"
            f'<text x="{x + width / 2:g}" y="{top - 4:.1f}" text-anchor="middle">{_short(count)}</text>'
            f'<text x="{x + width / 2:g}" y="{height + 34}" text-anchor="middle">{_short(2**power)}+</text>'
        )
    size = f'width="{len(powers) * step + 16}" height="{height + 44}"'
    return f'<svg {size} role="img" aria-label="rows by length">{"".join(bars)}</svg>'


def _short(number: int) -> str:
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**4, "k")):
        if number >= unit:
            return f"{number / (1000 if name == 'k' else unit):.3g}{name}"
    return str(number)


def _share(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


def _mark(passed: bool) -> str:
    return '<span class="good">passed</span>' if passed else '<span class="badtext">failed</span>'
