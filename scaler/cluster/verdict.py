"""Decide which nodes are bad, from the reports of all ranks of a preflight. Needs no torch."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scaler.core.errors import EXIT_BAD_INPUT, EXIT_TRY_AGAIN
from scaler.core.text import table

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
    """The report of one rank, up to the phase that it has reached.

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
        """Return whether the report is final."""
        return self.phase == "end" or self.problem is not None


@dataclass(frozen=True)
class NodeVerdict:
    """A conclusion from all reports: problems by node, a problem of a setting, or one that no node clearly has."""

    bad: dict[str, list[str]]
    setting: str | None = None
    unclear: str | None = None

    @property
    def status(self) -> int:
        """Return the exit status of the command."""
        return EXIT_BAD_INPUT if self.setting else EXIT_TRY_AGAIN if self.bad or self.unclear else 0


def judge(reports: Sequence[Report], hosts: Sequence[str], slowest_share: float, seconds: float) -> NodeVerdict:
    """Distinguish bad nodes from a bad setting.

    Args:
        reports: of the ranks that gave one.
        hosts: of all ranks, where known; "" where not.
        slowest_share: of the median of all ranks (of the faster of two); what is under it is bad.
        seconds: that each phase may take.
    """
    own = _own_problems(reports, hosts, seconds)
    nodes = {*(report.host for report in reports), *(host for host in hosts if host), *own}
    if own:
        first = next(iter(own.values()))[0]
        if len(own) == len(nodes) and (len(nodes) > 1 or first.startswith(f"{PHASES[0]}:")):
            return NodeVerdict(own, setting=f"{first} (on all nodes, so it is a setting)")
        return _most(own, nodes)
    waiting = [report for report in reports if report.waited]
    if waiting:
        last = min(waiting, key=lambda report: PHASES.index(report.phase))
        return NodeVerdict({}, unclear=f"all ranks wait for each other in {last.phase}: {last.problem}")
    found, unclear = _unlike(reports)
    for key, what in FIGURES.items():
        middle = _median(reports, key)
        for report in reports:
            value = report.facts.get(key)
            if middle is not None and value is not None and not value >= slowest_share * middle:
                found.append((report, f"{what}: {value / middle:.0%} of the median of all"))
    bad: dict[str, list[str]] = {}
    for report, problem in found:
        _add(bad, report.host, problem)
    if not bad and unclear:
        return NodeVerdict({}, unclear=unclear)
    return _most(bad, nodes)


def _own_problems(reports: Sequence[Report], hosts: Sequence[str], seconds: float) -> dict[str, list[str]]:
    """Return the problems by node that ranks report of themselves, and ranks without a report."""
    own: dict[str, list[str]] = {}
    heard = {report.rank for report in reports}
    for rank, host in enumerate(hosts):
        if rank not in heard:
            silent = f"rank {rank} was not heard of for {seconds:g} s: it does not run, or does not see the run folder"
            _add(own, host or f"the node of rank {rank}", silent)
    for report in reports:
        if report.problem and not report.waited:
            _add(own, report.host, f"{report.phase}: {report.problem}")
    return own


def _add(problems: dict[str, list[str]], host: str, problem: str) -> None:
    if problem not in problems.setdefault(host, []):
        problems[host].append(problem)


def _most(bad: dict[str, list[str]], nodes: set[str]) -> NodeVerdict:
    if len(bad) * 2 > len(nodes) > 1:
        listed = "; ".join(f"{host}: {problems[0]}" for host, problems in bad.items())
        return NodeVerdict(bad, setting=f"most nodes are bad, so it is a setting or the network: {listed}")
    return NodeVerdict(bad)


def _unlike(reports: Sequence[Report]) -> tuple[list[tuple[Report, str]], str | None]:
    """Return ranks that differ from the majority, and a difference without a majority."""
    found, unclear = [], None
    for key in EQUAL:
        held = [(report, json.dumps(report.facts[key], sort_keys=True)) for report in reports if key in report.facts]
        if not held:
            continue
        usual, count = Counter(value for _, value in held).most_common(1)[0]
        others = [(report, value) for report, value in held if value != usual]
        if others and count * 2 <= len(held):
            one = next(report for report, value in held if value == usual)
            differs = _short(others[0][0].facts[key], json.loads(usual))
            unclear = f"{key} on {others[0][0].host} is {differs} as on {one.host}; make them equal"
        else:
            found += [(report, f"{key} is {_short(report.facts[key], json.loads(usual))}") for report, _ in others]
    middles = {key: middle for key in LIKE if (middle := _median(reports, key)) is not None}
    for key, middle in middles.items():
        odd = [r for r in reports if not abs(r.facts.get(key, middle) - middle) <= LIKE[key] * abs(middle)]
        problems = [(r, f"computes a {key} of {r.facts[key]:.6g} where others get {middle:.6g}") for r in odd]
        if odd and not _are_few(odd, reports):
            unclear = f"{odd[0].host} {problems[0][1]}; one of the nodes computes wrongly"
        else:
            found += problems
    clocks = [report for report in reports if "clock" in report.facts]
    ahead = [report.facts["clock"] for report in clocks]
    if clocks and max(ahead) - min(ahead) > SKEW_SECONDS:
        middle = statistics.median(ahead)
        off = [report for report in clocks if abs(report.facts["clock"] - middle) > SKEW_SECONDS]
        if off and _are_few(off, reports):
            found += [(r, f"its clock is {r.facts['clock'] - middle:+.1f} s off the others'") for r in off]
        else:
            unclear = f"the clocks of the nodes are up to {max(ahead) - min(ahead):.1f} s apart"
    for report in reports:
        if not report.facts.get("error", 0.0) <= report.facts.get("bound", 0.0):
            found.append((report, f"the engine's step is {report.facts['error']:.1e} away from plain PyTorch's"))
    return found, unclear


def _are_few(odd: Sequence[Report], reports: Sequence[Report]) -> bool:
    """Return whether they are on less than half of the nodes, or there is only one node."""
    nodes = len({report.host for report in reports})
    return nodes == 1 or len({report.host for report in odd}) * 2 < nodes


def _median(reports: Sequence[Report], key: str) -> float | None:
    """Return the median; of two the greater, because a node may be slow, but none is too fast."""
    found = [report.facts.get(key) for report in reports]
    values = [value for value in found if value is not None and math.isfinite(value)]
    return statistics.median_high(values) if values else None


def _short(value: Any, usual: Any) -> str:
    if isinstance(value, dict):
        differing = [name for name in {**value, **usual} if value.get(name) != usual.get(name)]
        return ", ".join(f"{name} {value.get(name)}, not {usual.get(name)}" for name in sorted(differing))
    return f"{value}, not {usual}"


def render(reports: Sequence[Report], verdict: NodeVerdict) -> str:
    """Format a line for each node, and the problems."""
    header = ("node", "ranks", "device", "free", "TFLOP/s", "intra-node", "inter-node", "all", "")
    lines: list[tuple[str, ...]] = []
    by_host: dict[str, list[Report]] = {}
    for report in sorted(reports, key=lambda report: report.rank):
        by_host.setdefault(report.host, []).append(report)
    for host, found in by_host.items():
        facts = [report.facts for report in found]
        lines.append(
            (
                *(host, str(len(found)), str(facts[0].get("device", "-"))),
                _least(facts, "memory_bytes", 2**30, "{:.0f} GiB"),
                _least(facts, "matmul", 1e12),
                *(_least(facts, key, 1e9) for key in ("inside", "between", "everywhere")),
                "bad" if host in verdict.bad else "",
            )
        )
    text = table(lines, header)
    text += [f"{host}: {problem}" for host, problems in verdict.bad.items() for problem in problems]
    return "\n".join(text)


def _least(facts: Sequence[Mapping[str, Any]], key: str, unit: float, form: str = "{:.2f}") -> str:
    values = [fact[key] for fact in facts if fact.get(key) is not None]
    return form.format(min(values) / unit) if values else "-"
