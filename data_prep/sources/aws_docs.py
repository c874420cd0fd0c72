"""Read the AWS API reference from the package botocore, as plain text."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from scaler.core.errors import ScalerError

TAG = re.compile(r"<[^>]+>")


def version() -> str:
    """Return the version of botocore. Raises ScalerError where it is not installed."""
    try:
        return metadata.version("botocore")
    except metadata.PackageNotFoundError as error:
        raise ScalerError("aws-docs needs the package botocore; install it with `pip install '.[aws-docs]'`") from error


def models(share: int = 0, of: int = 1) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and model of every `of`-th service from the `share`-th on, each API in its newest version alone."""
    version()
    from botocore.loaders import Loader

    loader = Loader()
    for service in loader.list_available_services("service-2")[share::of]:
        yield service, loader.load_service_model(service, "service-2")


def documents(share: int = 0, of: int = 1) -> Iterator[str]:
    """Yield the pages of the AWS API reference as plain text: every `of`-th service from the `share`-th on.

    A page is a service, an operation with the parameters that go in and come out, or a data type with its members.
    Older versions of an API are left out, because they repeat most of the newest.
    """
    for _, api in models(share, of):
        yield from filter(None, _pages(api))


def _plain(markup: str) -> str:
    return " ".join(html.unescape(TAG.sub(" ", markup)).split())


def _pages(api: dict[str, Any]) -> Iterator[str]:
    shapes = api["shapes"]
    in_operations = set()

    def members(shape: dict[str, Any]) -> list[str]:
        described = shape.get("members", {}).items()
        return [f"{name}: {_plain(m['documentation'])}" for name, m in described if m.get("documentation")]

    yield _plain(api.get("documentation", ""))
    for operation in api["operations"].values():
        lines = [_plain(operation.get("documentation", ""))]
        for direction in ("input", "output"):
            if direction in operation:
                in_operations.add(operation[direction]["shape"])
                lines += members(shapes[operation[direction]["shape"]])
        yield "\n".join(filter(None, lines))
    for name, shape in shapes.items():
        if name not in in_operations:
            yield "\n".join(filter(None, [_plain(shape.get("documentation", "")), *members(shape)]))
