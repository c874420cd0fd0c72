"""Format numbers, durations and tables for people."""

from __future__ import annotations

from collections.abc import Sequence


def percent(fraction: float) -> str:
    """Format a fraction in per cent, with a decimal below 10 %.

    >>> percent(0.761), percent(0.034), percent(-0.02), percent(12.0)
    ('76 %', '3.4 %', '-2.0 %', '1,200 %')
    """
    value = 100 * fraction
    return f"{value:.1f} %" if abs(value) < 9.95 else f"{value:,.0f} %"


def signed_percent(fraction: float) -> str:
    """Format a relative error in per cent, with its sign.

    >>> signed_percent(-0.1234)
    '-12.3 %'
    """
    return f"{100 * fraction:+.1f} %"


def three_digits(value: float) -> str:
    """Format a number with three significant digits and commas.

    >>> three_digits(1234567.0), three_digits(999.6), three_digits(3.14159), three_digits(0.01234)
    ('1,230,000', '1,000', '3.14', '0.0123')
    """
    if value >= 1000:
        return f"{round(value, 2 - len(str(int(value))) + 1):,.0f}"
    return f"{value:,.0f}" if value >= 999.5 else f"{value:.3g}"


def quantity(count: int, unit: str) -> str:
    """Format a count with its unit, in the plural where it is not 1.

    >>> quantity(1, "node"), quantity(4, "node")
    ('1 node', '4 nodes')
    """
    return f"{count:,} {unit}{'s' * (count != 1)}"


def duration(seconds: float) -> str:
    """Format seconds with at most two units.

    >>> duration(4000), duration(75), duration(9.4)
    ('1h07m', '1m15s', '9s')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def table(rows: Sequence[Sequence[str]], header: Sequence[str] = (), align: str = "<") -> list[str]:
    """Return the lines of a table whose columns are as wide as their widest cell, two spaces apart.

    Args:
        rows: the cells of each row, equally many.
        header: names of the columns; none for a table without a head.
        align: "<" (left) or ">" (right) for all columns, or one such character for each.

    >>> table([["a", "10"], ["bcd", "7"]], header=["name", "n"], align="<>")
    ['name   n', 'a     10', 'bcd    7']
    """
    lines = [header, *rows] if header else list(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = align * len(widths) if len(align) == 1 else align
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(line, sides, widths, strict=True)).rstrip()
        for line in lines
    ]
