"""Line and bar charts as inline SVG: plain text, the same bytes for the same numbers, colours from the page's styles."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 40


@dataclass(frozen=True)
class Mark:
    """A point; `low` and `high` draw its interval, `label` shows on hover."""

    x: float
    y: float
    label: str = ""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """A line or the bars of one colour. `colour` is the class that the page's styles know."""

    title: str
    colour: str
    marks: Sequence[Mark | None]
    dots: bool = True


@dataclass(frozen=True)
class _Axis:
    """Maps values between two ends to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> str:
        place = self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)
        return f"{place:.1f}"

    @property
    def ticks(self) -> list[float]:
        step = tick_step(self.high - self.low)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(number * step, 10) for number in range(first, last + 1)]


def tick_step(span: float, wanted: int = 5) -> float:
    """1, 2 or 5 times a power of ten, so that about `wanted` steps span an axis."""
    rough = span / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    return power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)


def ends(values: Sequence[float], from_zero: bool = False) -> tuple[float, float]:
    """An axis that holds all values with a little air, its ends on ticks."""
    low, high = min(values), max(values)
    if from_zero:
        low = min(low, 0.0)
    if low == high:
        low, high = (low - 0.5, high + 0.5) if low else (0.0, 1.0)
    step = tick_step(high - low)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


def line_chart(
    series: Sequence[Series], x_title: str, y_title: str, size: tuple[int, int], highest: float | None = None
) -> str:
    """Lines through marks, in the order given. Values above `highest` are cut off at the top."""
    marks = [mark for one in series for mark in one.marks if mark]
    if not marks:
        return '<p class="soft">Nothing was measured.</p>'
    heights = [value for mark in marks for value in (mark.y, mark.low, mark.high) if value is not None]
    if highest is not None:
        heights = [min(value, highest) for value in heights]
    x = _Axis(*ends([mark.x for mark in marks]), LEFT, size[0] - RIGHT)
    y = _Axis(*ends(heights), size[1] - BOTTOM, TOP)
    body = [_frame(x, y, x_title, y_title, size)]
    for one in series:
        shown = [mark for mark in one.marks if mark]
        points = " ".join(f"{x(mark.x)},{y(min(mark.y, y.high))}" for mark in shown)
        drawn = [f'<polyline class="line" points="{points}"/>']
        for mark in shown if one.dots else []:
            if mark.low is not None and mark.high is not None:
                drawn.append(f'<path class="spread" d="M{x(mark.x)} {y(mark.low)}V{y(mark.high)}"/>')
            hover = f"<title>{escape(f'{one.title}: {mark.label}')}</title>"
            drawn.append(f'<circle cx="{x(mark.x)}" cy="{y(mark.y)}" r="4">{hover}</circle>')
        body.append(f'<g class="{one.colour}">{"".join(drawn)}</g>')
    return _svg(body, size, f"{y_title} against {x_title}")


def bar_chart(
    groups: Sequence[str],
    series: Sequence[Series],
    y_title: str,
    size: tuple[int, int],
    baseline: float | None = None,
) -> str:
    """Bars side by side in every group; each series has one mark (or None) per group. `baseline` draws a line across."""
    marks = [mark for one in series for mark in one.marks if mark]
    if not marks:
        return '<p class="soft">Nothing was measured.</p>'
    heights = [value for mark in marks for value in (mark.y, mark.high) if value is not None]
    y = _Axis(*ends([*heights, baseline or 0.0], from_zero=True), size[1] - BOTTOM, TOP)
    body = [_frame(None, y, "", y_title, size)]
    room = (size[0] - LEFT - RIGHT) / len(groups)
    width = min(room * 0.8 / len(series), 34.0)
    for place, group in enumerate(groups):
        middle = LEFT + room * (place + 0.5)
        for line, words in enumerate(group.split("\n")):
            body.append(
                f'<text x="{middle:.1f}" y="{size[1] - BOTTOM + 16 + 13 * line}" text-anchor="middle">{escape(words)}</text>'
            )
        for number, one in enumerate(series):
            mark = one.marks[place]
            if mark is None:
                continue
            x = middle + (number - len(series) / 2) * width
            drawn = [
                f'<rect x="{x + 1:.1f}" y="{y(mark.y)}" width="{width - 2:.1f}" height="{float(y(0)) - float(y(mark.y)):.1f}">'
                f"<title>{escape(f'{one.title}, {group}: {mark.label}'.replace(chr(10), ' '))}</title></rect>"
            ]
            if mark.low is not None and mark.high is not None:
                drawn.append(f'<path class="whisker" d="M{x + width / 2:.1f} {y(max(mark.low, 0))}V{y(mark.high)}"/>')
            body.append(f'<g class="{one.colour}">{"".join(drawn)}</g>')
    if baseline is not None:
        body.append(f'<path class="baseline" d="M{LEFT} {y(baseline)}H{size[0] - RIGHT}"/>')
    return _svg(body, size, y_title)


def _frame(x: _Axis | None, y: _Axis, x_title: str, y_title: str, size: tuple[int, int]) -> str:
    """Grid, ticks and axis titles."""
    parts = []
    for value in y.ticks:
        parts.append(f'<path class="grid" d="M{LEFT} {y(value)}H{size[0] - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{float(y(value)) + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in x.ticks if x else []:
        parts.append(f'<path class="grid" d="M{x(value)} {TOP}V{size[1] - BOTTOM}"/>')
        parts.append(f'<text x="{x(value)}" y="{size[1] - BOTTOM + 16}" text-anchor="middle">{value:g}</text>')
    middle = (TOP + size[1] - BOTTOM) / 2
    parts.append(
        f'<text class="axis" transform="translate(13 {middle:.1f}) rotate(-90)" text-anchor="middle">{escape(y_title)}</text>'
    )
    if x_title:
        parts.append(
            f'<text class="axis" x="{(LEFT + size[0] - RIGHT) / 2:.1f}" y="{size[1] - 5}" text-anchor="middle">'
            f"{escape(x_title)}</text>"
        )
    return "".join(parts)


def _svg(body: Sequence[str], size: tuple[int, int], label: str) -> str:
    opening = f'<svg viewBox="0 0 {size[0]} {size[1]}" width="{size[0]}" role="img" aria-label="{escape(label)}">'
    return f"{opening}{''.join(body)}</svg>"
