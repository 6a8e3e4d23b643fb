"""Curves drawn in characters: braille where the terminal has it, asterisks elsewhere."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

MARK = "o"
_BRAILLE, _DOTS = 0x2800, ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # by row and column in a cell
_MARGIN = 10  # characters, for the numbers at the left
_LOG_FROM = 3.0  # greatest over least value, from which the upright axis is logarithmic
_EARLY = 0.1  # share of the steps in which most of a fall makes the other axis logarithmic

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """One direction of a drawing.

    Args:
        low: the least value.
        high: the greatest one; above `low`.
        size: places, ≥ 2.
        logarithmic: whether equal distances are equal ratios; `low` is then above 0.
    """

    low: float
    high: float
    size: int
    logarithmic: bool

    def place(self, value: float) -> int:
        """The place of a value, 0 … size − 1; `low` is at 0."""
        low, high, value = (math.log(v) if self.logarithmic else v for v in (self.low, self.high, value))
        return min(self.size - 1, max(0, round((value - low) / (high - low) * (self.size - 1))))

    def value(self, share: float) -> float:
        """The value at a share of the way, in [0, 1]."""
        if self.logarithmic:
            return math.exp(math.log(self.low) * (1 - share) + math.log(self.high) * share)
        return self.low * (1 - share) + self.high * share


def draw(line: Points, marks: Points = (), width: int = 80, height: int = 14, braille: bool = True) -> list[str]:
    """A curve, and others' values as marks "o", with numbers at both axes.

    Each column of dots shows the range of the values in it, joined to the next. Axes are logarithmic where that shows
    more: upright if all values are positive and the greatest is 3 times the least, across if most of the fall happens
    in the first tenth of the steps.

    Args:
        line: (step, value); those that are not finite are left out.
        marks: (step, value) of few points.
        width: in characters, at least 30.
        height: of the drawing itself, in characters, at least 3; a line of numbers comes below.
        braille: 2×4 dots in a character, or 1×1.

    Returns:
        Lines; none if there is nothing finite.
    """
    line, marks = ([(x, y) for x, y in points if math.isfinite(x + y)] for points in (line, marks))
    every = [*line, *marks]
    if not every:
        return []
    cells, across, up = width - _MARGIN - 1, 2 if braille else 1, 4 if braille else 1
    x = _axis([point[0] for point in every], cells * across, _falls_early(line))
    values = [point[1] for point in every]
    y = _axis(values, height * up, min(values) > 0 and max(values) > _LOG_FROM * min(values))
    dots = [[0] * cells for _ in range(height)]
    for column, row in _drawn(line, x, y):
        row = y.size - 1 - row
        dots[row // up][column // across] |= _DOTS[row % 4][column % 2] if braille else 1
    drawn = [[chr(_BRAILLE + cell) if braille else " *"[cell] for cell in row] for row in dots]
    for step, value in marks:
        drawn[(y.size - 1 - y.place(value)) // up][x.place(step) // across] = MARK
    numbers = {0: y.high, (height - 1) // 2: y.value(1 - (height - 1) // 2 / (height - 1)), height - 1: y.low}
    edge = "┤" if braille else "|"
    rows = [
        f"{_short(numbers[n]) if n in numbers else '':>{_MARGIN}}{edge}{''.join(row)}" for n, row in enumerate(drawn)
    ]
    return [row.replace(chr(_BRAILLE), " ").rstrip() for row in rows] + [_below(x, cells)]


def _axis(values: Sequence[float], size: int, logarithmic: bool) -> Axis:
    low, high = min(values), max(values)
    if low == high:  # a line in the middle
        margin = abs(low) / 10 or 1.0
        return Axis(low - margin, high + margin, size, False)
    return Axis(low, high, size, logarithmic)


def _falls_early(points: Points) -> bool:
    if len(points) < 4 or points[0][0] <= 0:
        return False
    first, last = points[0], points[-1]
    early = [value for step, value in points if step <= first[0] + _EARLY * (last[0] - first[0])]
    fall = first[1] - last[1]
    return fall > 0 and first[1] - early[-1] > fall / 2


def _drawn(points: Points, x: Axis, y: Axis) -> Iterator[tuple[int, int]]:
    """The dots of a line, as column and row from below."""
    columns: dict[int, list[int]] = {}
    for step, value in points:
        columns.setdefault(x.place(step), []).append(y.place(value))
    before: tuple[int, int] | None = None
    for column in sorted(columns):
        rows = columns[column]
        if before is not None:
            yield from _joined(before, (column, rows[0]))
        yield from ((column, row) for row in range(min(rows), max(rows) + 1))
        before = column, rows[-1]


def _joined(start: tuple[int, int], end: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """What lies on the straight way between two dots."""
    count = max(abs(end[0] - start[0]), abs(end[1] - start[1]))
    for number in range(1, count):
        share = number / count
        yield round(start[0] + share * (end[0] - start[0])), round(start[1] + share * (end[1] - start[1]))


def _below(x: Axis, cells: int) -> str:
    left, middle, right = (f"{x.value(share):.0f}" for share in (0.0, 0.5, 1.0))
    words = f"{left:<{cells}}"
    at = (cells - len(middle)) // 2
    words = words[:at] + middle + words[at + len(middle) :]
    words = words[: cells - len(right)] + right
    return f"{'step (log)' if x.logarithmic else 'step':>{_MARGIN}} {words}".rstrip()


def _short(value: float) -> str:
    return f"{value:.4g}"
