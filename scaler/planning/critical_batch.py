"""Estimate the critical batch size, up to which a larger batch saves steps, from the gradient noise scale.

McCandlish et al. 2018, "An Empirical Model of Large-Batch Training". B_simple = tr(Sigma) / |G|^2, where G is the
expected gradient of the loss and Sigma the covariance of one row's gradient; it predicts the critical batch.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scaler.config import recipe as recipes
from scaler.config import typed
from scaler.config.command_line import run_recipe
from scaler.config.recipe import Recipe
from scaler.core.errors import ScalerError
from scaler.core.files import write_whole

FILE = "noise_scale.jsonl"  # in the folder of a run
LEAST_BATCHES = 3  # a standard error leaves one out, and a variance needs two
CERTAIN = 2.0  # standard errors by which |G|^2 must be above 0, because the noise scale is divided by it
# Sections of the recipe on which the noise scale depends; it also depends on the step and the batch.
DECISIVE = ("corpus", "tokenizer", "data.seq_len", "model", "objective", "optimizer")


@dataclass(frozen=True)
class Estimate:
    """An estimate of the noise scale from the gradients of some batches, with standard errors by the jackknife.

    Attributes:
        gradient, gradient_error: |G|^2; unbiased, so it may be negative.
        noise, noise_error: tr(Sigma) of one row; unbiased.
        rows, rows_error: B_simple in rows; None where more batches are needed.
    """

    gradient: float
    gradient_error: float
    noise: float
    noise_error: float
    rows: float | None
    rows_error: float | None


@dataclass(frozen=True)
class Record(Estimate):
    """An estimate for a run at one step: a line of its noise_scale.jsonl.

    Attributes:
        step: of the checkpoint.
        training_rows: of the batch that the run was trained with.
        batches, batch_rows: number and size of the batches whose gradients were taken.
        tokens_per_row: mean tokens of those rows, without padding.
        seconds: duration of the measurement.
    """

    step: int
    training_rows: int
    batches: int
    batch_rows: int
    tokens_per_row: float
    seconds: float


def estimate(squares: np.ndarray, products: np.ndarray, mean_square: float, rows: int) -> Estimate:
    """Return the unbiased estimators of appendix A.1, with each batch as the small one, and all as the large one.

    Args:
        squares: |g|^2 of each batch's gradient g, float64 (batches,).
        products: of each g with the mean of all, float64 (batches,).
        mean_square: |.|^2 of the mean of all.
        rows: of a batch.
    """
    count = len(squares)
    gradient, noise = _unbiased(squares.mean(), mean_square, count, rows)
    # the same without each of the batches in turn
    without = (squares.sum() - squares) / (count - 1)
    mean_without = (count**2 * mean_square - 2 * count * products + squares) / (count - 1) ** 2
    gradients, noises = _unbiased(without, mean_without, count - 1, rows)
    gradient_error, noise_error = _jackknife(gradients), _jackknife(noises)
    certain = gradient > CERTAIN * gradient_error and gradients.min() > 0
    return Estimate(
        *(float(gradient), gradient_error, float(noise), noise_error),
        float(noise / gradient) if certain else None,
        _jackknife(noises / gradients) if certain else None,
    )


def _unbiased(square: np.ndarray, mean_square: np.ndarray | float, count: int, rows: int) -> tuple[np.ndarray, ...]:
    """Return |G|^2 and tr(Sigma) from the mean of the batches' |g|^2 and the |.|^2 of their mean."""
    gradient = (count * mean_square - square) / (count - 1)
    noise = rows * count * (square - mean_square) / (count - 1)
    return gradient, noise


def _jackknife(without: np.ndarray) -> float:
    """Return the standard error of an estimate, from its values without each batch in turn (Efron 1982)."""
    return math.sqrt((len(without) - 1) * float(without.var()))


# ---- of a run


def read(run_dir: Path) -> list[Record]:
    """Return the measurements of a run by step, none if there is no file. Raise ScalerError for a damaged file."""
    path = run_dir / FILE
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    except ValueError as error:
        raise ScalerError(f"{path}: not readable as lines of JSON ({error}); delete it, and measure again") from error
    return [typed.build(Record, line, "", str(path)) for line in lines]


def write(run_dir: Path, records: Sequence[Record]) -> None:
    """Replace the measurements of a run."""
    write_whole(run_dir / FILE, "".join(json.dumps(dataclasses.asdict(record)) + "\n" for record in records))


def over_training(records: Sequence[Record]) -> float | None:
    """Return the critical batch of a whole training in rows, from the noise scale B at some steps; None without any.

    A step with the batch b makes 1 / (1 + B/b) of the progress of a step without noise. The critical batch is the mean
    of B weighted by that progress (section 2.3). Between measured steps the trapezoidal rule interpolates.
    """
    known = sorted((record.step, record.rows, record.training_rows) for record in records if record.rows is not None)
    if not known:
        return None
    steps, scales, rows = np.array(known, dtype=np.float64).T
    between = np.diff(steps)
    weights = (np.append(between, 0) + np.insert(between, 0, 0)) / 2 if len(steps) > 1 else np.ones(1)
    progress = weights / (1 + scales / rows)
    return float((progress * scales).sum() / progress.sum())


def chosen(critical_rows: float | None, run_dir: Path | None, recipe: Recipe) -> float | None:
    """Return the critical batch in rows as given, or as measured for a run; None if neither is asked for.

    Raises: ScalerError where that is no number above 0, the run has none, or is another training than the recipe's.
    """
    if critical_rows is not None and not 0 < critical_rows < math.inf:
        raise ScalerError(f"--critical_rows {critical_rows:g}: give a number of rows above 0")
    if run_dir is None:
        return critical_rows
    began_with = run_recipe(run_dir)
    if began_with is None:
        raise ScalerError(f"--noise_scale {run_dir}: no run here; name a folder such as runs/quickstart")
    its_recipe = recipes.compared(recipes.load(str(began_with)).to_plain())
    for key, (of_run, wanted) in typed.differences(its_recipe, recipes.compared(recipe.to_plain())).items():
        if any(key == part or key.startswith(f"{part}.") for part in DECISIVE):
            raise ScalerError(
                f"--noise_scale {run_dir}: that run has {key}={of_run!r}, and the plan {wanted!r}; measure a run of "
                "this recipe, or give --critical_rows"
            )
    records = read(run_dir)
    found = over_training(records)
    if found is None:
        why = "more batches are needed" if records else "it was not measured"
        raise ScalerError(f"--noise_scale {run_dir}: no noise scale in {FILE}, {why}; run scaler noise-scale")
    return found


def steps(steps_then: float, rows_then: int, rows: int, critical: float | None) -> float:
    """Return the steps with a batch of `rows` that reach the loss of `steps_then` steps with `rows_then` rows.

    Of (S/S_min - 1) (E/E_min - 1) = 1 with B_crit = E_min/S_min: S = S_min (1 + B_crit/B), E = S B = E_min (1 +
    B/B_crit) (section 2.3), each at its best learning rate. Without a critical batch, twice the batch needs half of the
    steps.
    """
    ideal = steps_then * rows_then / rows
    return ideal if critical is None else ideal * (rows + critical) / (rows_then + critical)
