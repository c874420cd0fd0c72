"""What a sweep searches, the next point in it, and what that asks of a training. Optuna is in `propose` alone."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import yaml

from scaler.config.recipe import Recipe
from scaler.core.errors import ScalerError
from scaler.data import order

# of a recipe's keys those that leave the data, the tokens trained on and the meaning of the held-out loss as they are
SEARCHED = (
    *("initialisation.", "model.", "objective.mask_probability", "objective.final_mask_probability", "optimizer."),
    *("schedule.", "training.rows"),
)
SPREAD = 10  # trials, after which TPE is Optuna's default
STATES = {"running": "RUNNING", "finished": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}  # as Optuna calls them


@dataclass(frozen=True)
class Parameter:
    """A key of the recipe that is searched: `choices`, or all from `low` to `high`, integers where these are."""

    key: str
    choices: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    log: bool = False  # evenly on a logarithmic scale

    def holds(self, value: Any) -> bool:
        """The value could be drawn."""
        if self.choices:
            return value in self.choices
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and self.low <= value <= self.high

    def at(self, share: float) -> Any:
        """The value that this share of all others lies below; 0 <= share < 1."""
        if self.choices:
            return self.choices[int(share * len(self.choices))]
        whole = isinstance(self.low, int)
        top = self.high + whole
        value = self.low * (top / self.low) ** share if self.log else self.low + (top - self.low) * share
        return min(math.floor(value) if whole else value, self.high)


def parse(words: Sequence[str], recipe_with: Callable[[list[str]], Recipe]) -> tuple[Parameter, ...]:
    """Read `key=low:high`, `key=log:low:high` and `key=[a, b]`.

    Args:
        recipe_with: the recipe with such overrides; it refuses unknown keys and values of a wrong type.

    Raises: ScalerError for what is no such word, for an empty range, and for what the recipe refuses.
    """
    found: dict[str, Parameter] = {}
    own = recipe_with([])
    for word in words:
        key, _, text = word.partition("=")
        if not key.startswith(SEARCHED):
            names = ", ".join(name + "*" * name.endswith(".") for name in SEARCHED)
            raise ScalerError(
                f"--space {word}: trials would not compare, or there is no such key; searched are {names}"
            )
        if key in found:
            raise ScalerError(f"--space {word}: {key} is there twice; leave one out")

        def as_recipe(value: Any, key: str = key) -> Any:
            return value_of(recipe_with([f"{key}={said(value)}"]), key)

        found[key] = (_choices if text.startswith("[") else _range)(word, key, text, as_recipe)
        if isinstance(value_of(own, key), float) and not found[key].choices:  # the type of a model's key is its value's
            found[key] = replace(found[key], low=float(found[key].low), high=float(found[key].high))
    return tuple(found.values())


def _choices(word: str, key: str, text: str, as_recipe: Callable[[Any], Any]) -> Parameter:
    try:
        listed = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ScalerError(f"--space {word}: the list is not YAML; it looks like '{key}=[a, b]'") from error
    choices = tuple(as_recipe(value) for value in listed)
    if len(choices) < 2 or any(choices.count(value) > 1 for value in choices):
        raise ScalerError(f"--space {word}: at least two choices are needed, no two the same")
    return Parameter(key, choices)


def _range(word: str, key: str, text: str, as_recipe: Callable[[Any], Any]) -> Parameter:
    log, ends = text.startswith("log:"), text.removeprefix("log:").split(":")
    try:
        low, high = (int(end) if re.fullmatch(r"[+-]?\d+", end) else float(end) for end in ends)
    except ValueError as error:
        raise ScalerError(f"--space {word}: {key}=low:high, {key}=log:low:high or '{key}=[a, b]' is needed") from error
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ScalerError(f"--space {word}: the range is empty; two numbers are needed, the lower one first")
    if log and low <= 0:
        raise ScalerError(f"--space {word}: a logarithmic scale begins above 0; leave out `log:`, or raise {low}")
    low, high = as_recipe(low), as_recipe(high)
    if isinstance(low, float) or isinstance(high, float):
        low, high = float(low), float(high)
    return Parameter(key, (), low, high, log)


def value_of(recipe: Recipe, key: str) -> Any:
    """What a recipe has for a dotted key; None where it says nothing."""
    inner: Any = recipe.to_plain()
    for name in key.split("."):
        inner = inner.get(name) if isinstance(inner, Mapping) else None
    return inner


def said(value: Any) -> str:
    """A value as an override has it, on one line.

    >>> said(1e-05), said([0.9, 0.98]), said(None), said("linear")
    ('1.0e-05', '[0.9, 0.98]', 'null', 'linear')
    """
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).splitlines()[0]


def overrides(parameters: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """What makes the recipe into a trial's: the parameters, and as many tokens and evaluations for any batch.

    With other rows there are other steps: the recipe's rows x steps are shared by them, up to half a batch an
    evaluation more or less.
    """
    training, found = recipe.training, [f"{key}={said(value)}" for key, value in parameters.items()]
    if "training.rows" in parameters:
        evaluations = training.steps // training.evaluate_every
        every = max(1, round(training.rows * training.evaluate_every / parameters["training.rows"]))
        found += [f"training.steps={every * evaluations}", f"training.evaluate_every={every}"]
    return found


def propose(space: Sequence[Parameter], records: Sequence[Mapping[str, Any]], seed: int, number: int) -> dict[str, Any]:
    """The point of the number-th trial, from 1: a function of the arguments, whoever was interrupted before.

    The first SPREAD are spread evenly (scrambled Sobol points, better than random ones: Bergstra and Bengio 2012),
    then Optuna's TPE proposes (Bergstra et al. 2011).

    Args:
        records: of the trials so far, the running ones, too, near which it proposes nothing.
    """
    if number <= SPREAD:
        shares = torch.quasirandom.SobolEngine(len(space), scramble=True, seed=seed).draw(number, dtype=torch.float64)
        return {one.key: one.at(share) for one, share in zip(space, shares[-1].tolist(), strict=True)}
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kinds: dict[str, optuna.distributions.BaseDistribution] = {}
    for one in space:
        if one.choices:
            kinds[one.key] = optuna.distributions.CategoricalDistribution(range(len(one.choices)))
        elif isinstance(one.low, int):
            kinds[one.key] = optuna.distributions.IntDistribution(one.low, int(one.high), one.log)
        else:
            kinds[one.key] = optuna.distributions.FloatDistribution(one.low, one.high, one.log)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=int(order.key(seed, number) >> 32)))
    for record in records:
        values, losses = record["parameters"], {int(number): loss for number, loss in record["losses"].items()}
        if all(one.holds(values[one.key]) for one in space):  # the recipe's own need not be
            state = optuna.trial.TrialState[STATES[record["state"]]]
            points = {one.key: one.choices.index(values[one.key]) if one.choices else values[one.key] for one in space}
            loss = losses[max(losses)] if record["state"] == "finished" else None
            study.add_trial(
                optuna.trial.create_trial(
                    state=state, value=loss, params=points, distributions=kinds, intermediate_values=losses
                )
            )
    asked = study.ask(kinds).params
    return {one.key: one.choices[asked[one.key]] if one.choices else asked[one.key] for one in space}
