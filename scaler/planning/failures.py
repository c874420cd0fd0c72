"""Estimate what failures, stragglers and saves cost a run, by formula and by simulation. Needs no torch.

Nodes fail independently and without memory. A job is as fast as its slowest rank, and a failure of one node ends it.
"""

from __future__ import annotations

import csv
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scaler.config.batch import most_that_share
from scaler.core.errors import ScalerError

# Llama 3 405B: 419 unexpected interruptions in 54 days on 16,384 H100, 8 a node (Grattafiori et al. 2024, 3.3.4)
MTBF_NODE_HOURS = 54 * 24 * 2048 / 419
PARTS = ("useful", "straggling", "saving", "lost", "restarting", "idle")
POINTS = 4096  # at which the distribution of the slowest rank is evaluated
QUANTILES = 1 << 17  # that stand for a log-normal distribution; eight of them are above the slowest of 16,384
MIN_USEFUL = 0.01  # expected fraction of useful time below which a run is not simulated, because it hardly ends


def young(save_seconds: float, mtbf_seconds: float) -> float:
    """Return the best seconds of work between two saves, to first order (Young 1974)."""
    return math.sqrt(2 * save_seconds * mtbf_seconds)


def daly(save_seconds: float, mtbf_seconds: float) -> float:
    """Return the best seconds of work between two saves (Daly 2006, equation 37)."""
    if save_seconds >= 2 * mtbf_seconds:
        return mtbf_seconds
    ratio = save_seconds / (2 * mtbf_seconds)
    return young(save_seconds, mtbf_seconds) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save_seconds


def expected_fraction(every_seconds: float, save_seconds: float, restart_seconds: float, mtbf_seconds: float) -> float:
    """Return the expected fraction of time that is useful work, where training waits for every save.

    Source: Daly 2006, the complete model.

    Args:
        every_seconds: of work between two saves.
        restart_seconds: from a failure to the first step after it.
        mtbf_seconds: of the job.
    """
    segment = (every_seconds + save_seconds) / mtbf_seconds
    return every_seconds / mtbf_seconds * math.exp(-restart_seconds / mtbf_seconds - segment) / -math.expm1(-segment)


@dataclass(frozen=True)
class Spread:
    """A distribution of step times on one rank, as multiples of the median.

    Attributes:
        steps: of a rank, by the median of its node, sorted. Each is drawn anew at each step.
        nodes: medians of nodes, by the median node's. Each node of a run draws one and keeps it.
    """

    steps: np.ndarray
    nodes: np.ndarray


def log_normal(deviation: float) -> Spread:
    """Return the spread of log-normal steps with a relative standard deviation, on equal nodes."""
    scale = math.sqrt(math.log1p(deviation**2))
    inverse = statistics.NormalDist().inv_cdf
    at = (np.arange(QUANTILES) + 0.5) / QUANTILES if scale else np.array([0.5])
    return Spread(np.exp(scale * np.array([inverse(share) for share in at])), np.ones(1))


def read_spread(path: Path) -> Spread:
    """Read the spread from a CSV file with the columns `node` and `seconds`, a line a rank and step.

    Raises: ScalerError for a file that is not that.
    """
    seconds: dict[str, list[float]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        try:
            for row in reader:
                value = float(row["seconds"])
                if not (row["node"] and 0 < value < math.inf):
                    raise ValueError(value)
                seconds.setdefault(row["node"], []).append(value)
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            rule = "columns node and seconds (above 0) are needed, a line a rank and step"
            raise ScalerError(f"{path}:{reader.line_num}: {rule} ({error}); mend the file") from error
    if not seconds:
        raise ScalerError(f"{path}: no step times; measure some, or give a relative standard deviation")
    medians = {node: statistics.median(values) for node, values in seconds.items()}
    steps = np.sort(np.concatenate([np.array(values) / medians[node] for node, values in seconds.items()]))
    of_nodes = np.array(list(medians.values()))
    return Spread(steps, of_nodes / np.median(of_nodes))


def slowest(spread: Spread, nodes: int, ranks_per_node: int, runs: int, seed: int) -> np.ndarray:
    """Return the mean step time of the slowest rank, by the median of one: (runs,), because each run draws its nodes.

    The probability that none of n ranks is above x is the product of theirs; the mean of the greatest is the integral
    of the rest. No rank is slower than the slowest measured.
    """
    ends = np.outer((spread.nodes.min(), spread.nodes.max()), (spread.steps[0], spread.steps[-1]))
    at = np.geomspace(ends.min(), ends.max(), POINTS)
    below = np.searchsorted(spread.steps, at / spread.nodes[:, None], side="right") / len(spread.steps)
    kinds = len(spread.nodes)
    counts = np.random.default_rng(seed).multinomial(nodes, np.full(kinds, 1 / kinds), size=runs)  # (runs, kinds)
    none_above = np.exp(counts @ (ranks_per_node * np.log(np.maximum(below, 1e-300))))  # (runs, points)
    mean: np.ndarray = at[0] + (1 - none_above[:, :-1]) @ np.diff(at)
    return mean


@dataclass(frozen=True)
class SimulatedRun:
    """A run to simulate, and its machines.

    Attributes:
        step_seconds: of a rank at its median, on all nodes.
        save_seconds: that training waits for a save.
        write_seconds: from the beginning of a save until it counts; `save_seconds` where training waits for all of it.
        restart_seconds: from a failure to the first step: to notice, to start all ranks, to load.
        replacement_seconds: until a failed node is back, or another in its place; 0 with spares.
        mtbf_seconds: of a node.
        elastic_rows: rows of the batch that a rank takes when all nodes are there. The run goes on with the most nodes
            that can share the same batch equally, and restarts when more can. None: it waits for the node.
    """

    nodes: int
    steps: int
    step_seconds: float
    save_seconds: float
    write_seconds: float
    restart_seconds: float
    replacement_seconds: float
    mtbf_seconds: float
    elastic_rows: int | None = None

    @property
    def job_mtbf_seconds(self) -> float:
        """Return the mean time between failures of any node."""
        return self.mtbf_seconds / self.nodes

    def worlds(self) -> np.ndarray:
        """Return how many nodes train, by the number that are up: (nodes + 1,). 0 means that they wait."""
        if self.elastic_rows is None:
            return np.append(np.zeros(self.nodes, dtype=int), self.nodes)
        return np.array(most_that_share(self.elastic_rows * self.nodes, self.nodes))

    def promise(self, every: int, step_seconds: float) -> float:
        """Return the expected fraction of useful time with a save every `every` steps, by the complete model."""
        stall = max(self.save_seconds, self.write_seconds - every * step_seconds)
        wait = self.restart_seconds + (self.replacement_seconds if self.elastic_rows is None else 0.0)
        return expected_fraction(every * step_seconds, stall, wait, self.job_mtbf_seconds)


@dataclass(frozen=True)
class SimulationResult:
    """The result of several simulations of a run.

    Attributes:
        parts: by name of PARTS, node-seconds of each run divided by all its nodes: (runs,).
        failures: that ended a job or hit it while it waited, in each run: (runs,).
    """

    parts: dict[str, np.ndarray]
    failures: np.ndarray

    @property
    def wall_seconds(self) -> np.ndarray:
        """Return the duration of each run: (runs,)."""
        return np.asarray(sum(self.parts.values()))

    @property
    def fractions(self) -> dict[str, float]:
        """Return the fraction of each part in the node-seconds of all runs; that of "useful" is the goodput."""
        return {name: float(part.sum() / self.wall_seconds.sum()) for name, part in self.parts.items()}


def simulate(plan: SimulatedRun, every: int, step_seconds: np.ndarray, seed: int) -> SimulationResult:
    """Simulate a run several times, from failure to failure, all at once.

    k steps take k times their mean: their own scatter falls with sqrt(k), and is nothing beside that of failures. With
    fewer nodes the slowest rank is taken to be as slow. Healthy nodes that cannot share the batch take the place of
    failed ones, and do not fail themselves.

    Args:
        every: steps between two saves. The last step is saved, too, and waited for.
        step_seconds: the mean step on all nodes, slowest rank included, of each run: (runs,).
        seed: failures occur at the same seconds for any `every`, unless the run is elastic.

    Raises: ScalerError for a plan that would hardly ever end.
    """
    if plan.promise(every, float(step_seconds.mean())) < MIN_USEFUL:
        raise ScalerError(
            f"{plan.nodes:,} nodes, of which one fails every {plan.job_mtbf_seconds:,.0f} s, do less than "
            f"{MIN_USEFUL:.0%} useful work with a save every {every:,} steps; save at another interval, or take fewer "
            "nodes, spares or --elastic"
        )
    chance = np.random.default_rng(seed)
    worlds, runs = plan.worlds(), len(step_seconds)
    parts = {part: np.zeros(runs) for part in PARTS}
    failures, done, clock = np.zeros(runs, dtype=int), np.zeros(runs, dtype=int), np.zeros(runs)
    back = np.empty((runs, 0))  # when failed nodes return, sorted: (runs, most down at once)
    while (done < plan.steps).any():  # a turn: from a start to what ends it
        up = plan.nodes - (back > clock[:, None]).sum(axis=1)
        world = worlds[up]
        pace = step_seconds * plan.nodes / np.maximum(world, 1)
        cycle = np.maximum(every * pace + plan.save_seconds, plan.write_seconds)  # one write at a time
        left = plan.steps - done
        saves = np.maximum(-(-left // every) - 1, 0)  # before the last

        # the first of three ends it: a failure, the return of nodes with which more can train, the last step
        at_risk = np.maximum(np.where(world, world, up), 1e-9)  # nodes; where none is up, none fails
        failure = clock + chance.exponential(size=runs) * plan.mtbf_seconds / at_risk
        first = np.where(world, clock + np.where(clock, plan.restart_seconds, 0.0), np.inf)  # step
        then = worlds[plan.nodes - np.arange(back.shape[1])[::-1]]
        more = np.where((then > world[:, None]) & (back > clock[:, None]), back, np.inf).min(axis=1, initial=np.inf)
        more = np.where(more < first, more, more + plan.write_seconds)  # it saves before it stops
        finish = first + left * pace + saves * (cycle - every * pace) + plan.write_seconds
        end = np.where(left, np.minimum(np.minimum(failure, more), finish), clock)
        failed = (left > 0) & (end == failure)

        # what stays of it
        work = np.maximum(end - first, 0.0)
        saved = np.clip((work - (plan.write_seconds - plan.save_seconds)) // cycle, 0, saves).astype(int)
        whole, rest = np.divmod(np.maximum(work - plan.write_seconds, 0.0), cycle)
        stopped = np.minimum(whole * every + np.minimum(rest // pace, every), left).astype(int)
        kept = np.where(failed, saved * every, np.where(end == finish, left, stopped))
        kept_seconds = np.where(failed, saved * cycle, work)

        share = world / plan.nodes
        parts["useful"] += kept * plan.step_seconds
        parts["straggling"] += kept * (step_seconds - plan.step_seconds)
        parts["saving"] += share * (kept_seconds - kept * pace)
        parts["lost"] += share * (work - kept_seconds)
        parts["restarting"] += share * (end - clock - work)
        parts["idle"] += (1 - share) * (end - clock)
        clock, done, failures = end, done + kept, failures + failed
        back = np.sort(np.column_stack([back, np.where(failed, end + plan.replacement_seconds, -np.inf)]), axis=1)
        back = back[:, (back > clock[:, None]).any(axis=0)]
    return SimulationResult(parts, failures)


def best_interval(plan: SimulatedRun, step_seconds: np.ndarray, seed: int) -> tuple[int, SimulationResult]:
    """Return the steps between saves with the most useful time, of 17 from a quarter of Daly's to four times it.

    Raises: ScalerError where none of them would get anywhere.
    """
    mean = float(step_seconds.mean())
    middle = daly(plan.save_seconds, plan.job_mtbf_seconds) / mean
    near = sorted({min(max(round(middle * 2 ** (power / 4)), 1), plan.steps) for power in range(-8, 9)})
    able = [every for every in near if plan.promise(every, mean) >= MIN_USEFUL] or near[:1]
    outcomes = {every: simulate(plan, every, step_seconds, seed) for every in able}
    return max(outcomes.items(), key=lambda item: item[1].fractions["useful"])
