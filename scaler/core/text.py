"""Format numbers and durations for people."""

from __future__ import annotations


def share(value: float) -> str:
    """A share as per cent; one digit more where it is small.

    >>> share(0.761), share(0.034), share(-0.02), share(12.0)
    ('76 %', '3.4 %', '-2.0 %', '1,200 %')
    """
    percent = 100 * value
    return f"{percent:.1f} %" if abs(percent) < 9.95 else f"{percent:,.0f} %"


def signed(error: float) -> str:
    """An error as per cent.

    >>> signed(-0.1234)
    '-12.3 %'
    """
    return f"{100 * error:+.1f} %"


def rounded(value: float) -> str:
    """Three digits that mean something, with commas.

    >>> rounded(1234567.0), rounded(999.6), rounded(3.14159), rounded(0.01234)
    ('1,230,000', '1,000', '3.14', '0.0123')
    """
    if value >= 1000:
        return f"{round(value, 2 - len(str(int(value))) + 1):,.0f}"
    return f"{value:,.0f}" if value >= 999.5 else f"{value:.3g}"


def counted(count: int, what: str) -> str:
    """A number of things.

    >>> counted(1, "node"), counted(4, "node")
    ('1 node', '4 nodes')
    """
    return f"{count:,} {what}{'s' * (count != 1)}"


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(4000), duration(75), duration(9.4)
    ('1h07m', '1m15s', '9s')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
