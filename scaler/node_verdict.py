"""Which nodes are bad, from what each rank of a preflight has found. Pure."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scaler.errors import EXIT_BAD_INPUT, EXIT_TRY_AGAIN

PHASES = ("settings", "machine", "meeting", "network", "parity", "end")
TOGETHER = ("meeting", "network", "parity")  # in which ranks wait for each other
SKEW_SECONDS = 1.0  # by which clocks may differ: logs are compared, and files by their time
FIGURES = {  # of a rank; far under the median of all, a node is bad
    "matmul": "matrix multiplications",
    "inside": "all-reduce inside the node",
    "between": "links to other nodes",
}
EQUAL = ("python", "packages", "commit", "device", "gpus", "rows", "tokenizer")  # on all ranks
LIKE = {"gradient_norm": 1e-3, "loss": 1e-3}  # relative, for the same rows and weights


@dataclass
class Report:
    """What one rank found, as far as it has come.

    Attributes:
        host: its node.
        phase: that it is in; "end" after the last.
        problem: why it came no further.
        waited: the problem is that others did not come, so it is theirs.
        facts: that are compared between ranks.
    """

    rank: int
    host: str
    phase: str = "start"
    problem: str | None = None
    waited: bool = False
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        """Nothing more will come of this rank."""
        return self.phase == "end" or self.problem is not None


@dataclass(frozen=True)
class Verdict:
    """What the reports say together: problems by node, and one of a setting, which is no node's."""

    bad: dict[str, list[str]]
    setting: str | None = None

    @property
    def status(self) -> int:
        """Of the command."""
        return EXIT_BAD_INPUT if self.setting else EXIT_TRY_AGAIN if self.bad else 0


def judge(reports: Sequence[Report], hosts: Sequence[str], slowest_share: float, seconds: float) -> Verdict:
    """Tell bad nodes from a bad setting.

    Args:
        reports: of the ranks that gave one.
        hosts: of all ranks, where known; "" where not.
        slowest_share: of the median of all ranks; what is under it is bad.
        seconds: that each phase may take.
    """
    bad: dict[str, list[str]] = {}

    def blame(host: str, problem: str) -> None:
        if problem not in bad.setdefault(host, []):
            bad[host].append(problem)

    heard = {report.rank for report in reports}
    for rank, host in enumerate(hosts):
        if rank not in heard:
            blame(
                host or f"the node of rank {rank}",
                f"rank {rank} was not heard of for {seconds:g} s: it does not run, or does not see the run folder",
            )
    for report in reports:
        if report.problem and not report.waited:
            blame(report.host, f"{report.phase}: {report.problem}")
    if not bad:
        for report, problem in [*_unlike(reports), *_slow(reports, slowest_share)]:
            blame(report.host, problem)
    waiting = [report for report in reports if report.waited]
    if not bad and waiting:
        last = min(waiting, key=lambda report: PHASES.index(report.phase))
        return Verdict({}, f"all ranks wait for each other in {last.phase}: {last.problem}")
    own = [report for report in reports if report.problem and not report.waited]
    if own and len({report.host for report in own}) == len(set(hosts) | {report.host for report in reports}):
        return Verdict(bad, f"{own[0].phase}: {own[0].problem} (on all nodes, so it is a setting)")
    if len(bad) * 2 > len(set(hosts) | set(bad)):
        said = "; ".join(f"{host}: {problems[0]}" for host, problems in bad.items())
        return Verdict(bad, f"most nodes are bad, so it is a setting or the network: {said}")
    return Verdict(bad)


def _unlike(reports: Sequence[Report]) -> list[tuple[Report, str]]:
    """Ranks that are not as most are."""
    found = []
    for key in EQUAL:
        values = [json.dumps(report.facts[key], sort_keys=True) for report in reports if key in report.facts]
        usual = Counter(values).most_common(1)[0][0] if values else ""
        for report in reports:
            if key in report.facts and json.dumps(report.facts[key], sort_keys=True) != usual:
                found.append((report, f"{key} is {_short(report.facts[key], json.loads(usual))}"))
    for key, bound in LIKE.items():
        middle = _median(reports, key)
        for report in reports:
            if (
                middle is not None
                and key in report.facts
                and not abs(report.facts[key] - middle) <= bound * abs(middle)
            ):
                found.append((report, f"computes a {key} of {report.facts[key]:.6g} where others get {middle:.6g}"))
    middle = _median(reports, "clock")
    for report in reports:
        if middle is not None and "clock" in report.facts and abs(report.facts["clock"] - middle) > SKEW_SECONDS:
            found.append((report, f"its clock is {report.facts['clock'] - middle:+.1f} s off the others'"))
        if not report.facts.get("error", 0.0) <= report.facts.get("bound", 0.0):
            found.append((report, f"the engine's step is {report.facts['error']:.1e} away from plain PyTorch's"))
    return found


def _slow(reports: Sequence[Report], share: float) -> list[tuple[Report, str]]:
    found = []
    for key, what in FIGURES.items():
        middle = _median(reports, key)
        for report in reports:
            value = report.facts.get(key)
            if middle is not None and value is not None and not value >= share * middle:
                found.append((report, f"{what}: {value / middle:.0%} of the median of all"))
    return found


def _median(reports: Sequence[Report], key: str) -> float | None:
    found = [report.facts.get(key) for report in reports]
    values = [value for value in found if value is not None and math.isfinite(value)]
    return statistics.median(values) if values else None


def _short(value: Any, usual: Any) -> str:
    if isinstance(value, dict):
        differing = [name for name in {**value, **usual} if value.get(name) != usual.get(name)]
        return ", ".join(f"{name} {value.get(name)}, not {usual.get(name)}" for name in sorted(differing))
    return f"{value}, not {usual}"


def table(reports: Sequence[Report], verdict: Verdict) -> str:
    """The nodes, a line each."""
    lines: list[tuple[str, ...]] = [("node", "ranks", "device", "free", "TFLOP/s", "inside", "between", "")]
    by_host: dict[str, list[Report]] = {}
    for report in sorted(reports, key=lambda report: report.rank):
        by_host.setdefault(report.host, []).append(report)
    for host, found in by_host.items():
        facts = [report.facts for report in found]
        free = [fact["memory_bytes"] for fact in facts if "memory_bytes" in fact]
        lines.append(
            (
                *(host, str(len(found)), str(facts[0].get("device", "-"))),
                f"{min(free) / 2**30:.0f} GiB" if free else "-",
                _least(facts, "matmul", 1e12),
                *(_least(facts, key, 1e9) for key in ("inside", "between")),
                "bad" if host in verdict.bad else "",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    text += [f"{host}: {problem}" for host, problems in verdict.bad.items() for problem in problems]
    return "\n".join(text)


def _least(facts: Sequence[Mapping[str, Any]], key: str, unit: float) -> str:
    values = [fact[key] for fact in facts if fact.get(key) is not None]
    return f"{min(values) / unit:.2f}" if values else "-"
