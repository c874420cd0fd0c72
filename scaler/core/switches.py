"""Switch replacements of library code on and off by SCALER_PATCHES, and record which were applied.

`SCALER_PATCHES=none` leaves all libraries as they are, `all` is the default, and `NAME,NAME` applies these alone. What
each one replaces and where it applies stands in scaler/engine/patches/__init__.py. Off is correct, and slower.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from scaler.core.errors import ScalerError, nearest

VARIABLE = "SCALER_PATCHES"
NAMES = ("attention", "dropout", "wide_head", "sparse_lookup", "gradient_norm", "direct_collectives", "allocator")
APPLIED, OFF = "applied", "off"

_outcomes: dict[str, str] = {}


def switched_on(environ: Mapping[str, str] = os.environ) -> frozenset[str]:
    """Return the names of the patches that may be applied.

    Raises: ScalerError for a name that is unknown.

    >>> sorted(switched_on({"SCALER_PATCHES": "dropout, attention"}))
    ['attention', 'dropout']
    """
    given = environ.get(VARIABLE, "all").strip()
    if given in ("all", "none"):
        return frozenset(NAMES if given == "all" else ())
    names = [name.strip() for name in given.split(",")]
    for name in names:
        if name not in NAMES:
            raise ScalerError(f"{VARIABLE}={given}: unknown patch {name!r}; {nearest(name, (*NAMES, 'all', 'none'))}")
    return frozenset(names)


def apply(name: str, install: Callable[[], str | None], against: str | None = None) -> bool:
    """Install a patch unless it is switched off, and record what became of it.

    Args:
        name: one of NAMES.
        install: installs it, or returns why it cannot.
        against: why it must not be installed, if so.

    Returns: True where it is installed.
    """
    if name not in switched_on():
        _outcomes[name] = OFF
    else:
        _outcomes[name] = against or install() or APPLIED
    return _outcomes[name] == APPLIED


def outcomes() -> dict[str, str]:
    """Return for each patch "applied", "off", or why it was not applied in this process."""
    return {name: _outcomes.get(name, "not reached") for name in NAMES}
