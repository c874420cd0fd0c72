"""Pretrain a masked LM: `deepspeed scaler/train.py --deepspeed_config ds_configs/zero2.json [--recipe NAME]`."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

if not __package__:  # run as a file: find the package beside it, and let no file here shadow a library
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch
from transformers import PreTrainedModel

from scaler import (
    ds_config,
    evaluate,
    initialisation,
    metrics,
    model,
    order,
    plan,
    prepared,
    schedule,
    token_rows,
    world,
)
from scaler.batches import RowReader
from scaler.errors import ScalerError, command, naming_full_disk
from scaler.export import export, model_card
from scaler.manifests import write_json
from scaler.recipe import DEFAULT_RECIPE, Recipe, load

Result = TypeVar("Result")
DEFAULT_DS_CONFIG = Path(__file__).resolve().parent.parent / "ds_configs" / "zero2.json"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="scaler/train.py", description=__doc__)
    parser.add_argument("--deepspeed_config", type=Path, default=DEFAULT_DS_CONFIG, help="DeepSpeed's JSON (zero2)")
    parser.add_argument("--recipe", default=DEFAULT_RECIPE, help=f"name or YAML file ({DEFAULT_RECIPE})")
    parser.add_argument("--run_dir", type=Path, help="new folder for the run (runs/NAME, or NAME-2, NAME-3 ...)")
    parser.add_argument("--dry_run", action="store_true", help="say what the run would do, and touch nothing")
    parser.add_argument("--json", action="store_true", help="the dry run as JSON")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="overrides of the recipe")
    parsed = parser.parse_intermixed_args(arguments)
    if parsed.json and not parsed.dry_run:
        parser.error("--json goes with --dry_run")
    return parsed


@dataclass(frozen=True)
class Job:
    """All that is known before the first step."""

    recipe: Recipe
    resolved: dict[str, Any]
    batch: ds_config.SolvedBatch
    data: prepared.Prepared
    config: Any
    rows: dict[str, RowReader]


def resolve(arguments: argparse.Namespace, here: world.World) -> Job:
    """Read recipe, DeepSpeed configuration and data, and make them agree. Raises ScalerError where they cannot."""
    recipe = load(arguments.recipe, arguments.overrides)
    batch = ds_config.solve_batch(recipe.training.rows, here.size, recipe.training.max_micro_rows)
    resolved = ds_config.resolve(
        ds_config.read(arguments.deepspeed_config),
        arguments.deepspeed_config,
        recipe,
        batch,
        ds_config.bf16_is_native(world.device(here)),
    )
    data = prepared.open_prepared(recipe)
    config = model.configuration(recipe.model, data.vocabulary, recipe.tokenizer.vocab_size, recipe.data.seq_len)
    rows = {split: data.rows(split, recipe, model.first_position(config)) for split in ("train", "heldout")}
    free_run_dir(arguments.run_dir, recipe.name)  # refuses an impossible one
    return Job(recipe, resolved, batch, data, config, rows)


def free_run_dir(asked: Path | None, name: str) -> Path:
    """The run folder: the one asked for, which must be new, or the first free of runs/NAME, runs/NAME-2 ..."""
    if asked is not None:
        in_the_way = next((above for above in asked.parents if above.exists()), Path())
        if not in_the_way.is_dir():
            raise ScalerError(f"--run_dir {asked}: {in_the_way} is a file; name another folder")
        if asked.exists() and (not asked.is_dir() or any(asked.iterdir())):
            raise ScalerError(f"--run_dir {asked}: is no new folder, and may hold another run; name another")
        return asked
    candidate, number = Path("runs") / name, 1
    while candidate.exists():
        number += 1
        candidate = Path("runs") / f"{name}-{number}"
    return candidate


def open_run(asked: Path | None, job: Job) -> metrics.RunLog:
    """Make the run folder with its resolved settings, and open its log."""
    run_dir = free_run_dir(asked, job.recipe.name)
    with naming_full_disk(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "recipe.yaml").write_text(job.recipe.to_yaml(), encoding="utf-8")
        write_json(run_dir / "ds_config.json", job.resolved)
        return metrics.RunLog(run_dir)


def attempt(work: Callable[[], Result], here: world.World) -> Result:
    """Do something that may fail on one rank alone, and let all ranks fail together."""
    problem, result = None, None
    try:
        result = work()
    except ScalerError as error:
        problem = str(error)
    world.agree_or_raise(problem, here)
    return cast(Result, result)


def starting_point(job: Job, unigram_counts: np.ndarray) -> PreTrainedModel:
    """The model that training begins with, the same on every rank."""
    recipe = job.recipe
    network = model.build(job.config, recipe.seed)
    if recipe.initialisation.unigram_bias:
        initialisation.start_from_unigram(network, unigram_counts)
    if recipe.initialisation.neighbour_heads:
        initialisation.look_at_neighbours(network, recipe.initialisation.neighbour_heads)
    return network


def run(arguments: argparse.Namespace, here: world.World, engines: ModuleType) -> None:
    """Train, evaluate, export: the whole run, on this rank. `engines` is the room of DeepSpeed."""
    # ---- the ranks meet; inputs are opened and verified, each rank its share
    started = time.perf_counter()
    engines.join(here)
    job = attempt(lambda: resolve(arguments, here), here)
    attempt(lambda: engines.check(job.resolved, arguments.deepspeed_config), here)
    attempt(lambda: token_rows.verify(job.data.manifest, here.rank, here.size), here)
    recipe, training = job.recipe, job.recipe.training
    seq_len, total_steps = recipe.data.seq_len, training.steps
    say = print if here.is_first else (lambda *_, **__: None)

    # ---- model and engine
    device = world.device(here)
    unigram_counts = attempt(job.data.manifest.unigram_counts, here)
    network = attempt(lambda: starting_point(job, unigram_counts), here)
    parameters, _ = model.count_parameters(network)
    engine = attempt(lambda: engines.Engine(model.MaskedLM(network), recipe.optimizer, job.resolved), here)
    log = attempt(lambda: open_run(arguments.run_dir, job) if here.is_first else None, here)
    torch.manual_seed(int(order.key(recipe.seed, here.rank) >> 1))  # dropout differs between ranks

    # ---- the machine's ceiling, and the loss that needs no model
    precision = torch.bfloat16 if engine.bf16 else torch.float32
    ceiling = metrics.measure_matmul_flops(device, precision)
    ceiling = float(world.total(torch.tensor(ceiling, device=device, dtype=torch.float64)))
    unigram = evaluate.unigram_entropy(job.rows["heldout"], unigram_counts)
    flops_per_row = model.flops_per_row(network, seq_len, job.rows["train"].masked)
    say(
        f"{log.run_dir if log else ''}: {parameters:,} parameters, {here.size} ranks, ZeRO-{engine.stage}, "
        f"{'bf16' if engine.bf16 else 'fp32'}, {total_steps:,} steps of {training.rows} x {seq_len} tokens "
        f"({job.batch.micro_rows} rows x {job.batch.accumulation} accumulation a rank); "
        f"matrix-multiply ceiling {ceiling / 1e9:,.0f} GFLOP/s; started in {time.perf_counter() - started:.0f} s"
    )

    losses = torch.zeros((), device=device, dtype=torch.float64)
    counted_steps, train_seconds, evaluation_seconds = 0, 0.0, 0.0

    def measure(step: int) -> evaluate.HeldOut:
        engine.train(False)
        found = evaluate.heldout(engine, job.rows["heldout"], job.batch.micro_rows, here)
        samples = evaluate.filled_masks(engine, job.rows["heldout"], job.data.tokenizer, here)
        engine.train(True)
        if log:
            log.write(
                step,
                **found.records("heldout"),
                heldout_unigram_entropy=unigram,
            )
            log.text(step, "heldout/filled_masks", samples)
        say(
            f"step {step:>6,}/{total_steps:,} | held-out loss {found.loss:.3f} (unigram entropy {unigram:.3f}) | "
            f"masked accuracy {found.masked_accuracy:.1%}",
            flush=True,
        )
        return found

    # ---- the loop
    for step in range(total_steps):
        if step % training.evaluate_every == 0:
            clock = time.perf_counter()
            measure(step)
            evaluation_seconds += time.perf_counter() - clock
            one_evaluation = evaluation_seconds / (step // training.evaluate_every + 1)
        clock = time.perf_counter()
        rate = schedule.learning_rate(
            step,
            peak=recipe.optimizer.learning_rate,
            warmup_steps=round(recipe.schedule.warmup_share * total_steps),
            total_steps=total_steps,
            shape=recipe.schedule.shape,
            floor=recipe.schedule.floor,
        )
        first_row = step * training.rows + here.rank * job.batch.micro_rows * job.batch.accumulation
        for micro in range(job.batch.accumulation):
            rows = job.rows["train"].at(first_row + micro * job.batch.micro_rows, job.batch.micro_rows)
            loss, _ = engine(rows.to(device))
            engine.backward(loss)
            norm = engine.step(rate)
            losses += loss.detach()
        if not norm < math.inf:  # the global norm, so every rank sees it
            problem = f"step {step + 1}: the gradient norm is {norm}; training stopped; lower optimizer.learning_rate"
            world.agree_or_raise(problem, here)
        counted_steps += 1
        train_seconds += time.perf_counter() - clock

        if (step + 1) % training.log_every == 0 or step + 1 == total_steps:
            mean_loss = float(world.total(losses)) / (counted_steps * job.batch.accumulation * here.size)
            rows_per_second = counted_steps * training.rows / train_seconds
            of_ceiling = rows_per_second * flops_per_row / ceiling
            left = (total_steps - step - 1) * training.rows / rows_per_second
            left += (total_steps - step - 1) // training.evaluate_every * one_evaluation
            if log:
                log.write(
                    step + 1,
                    train_loss=mean_loss,
                    train_learning_rate=rate,
                    train_gradient_norm=norm,
                    speed_tokens_per_second=rows_per_second * seq_len,
                    speed_share_of_matmul_ceiling=of_ceiling,
                    speed_memory_bytes=metrics.memory_bytes(device),
                    speed_seconds_left=left,
                )
            say(
                f"step {step + 1:>6,}/{total_steps:,} | loss {mean_loss:.3f} | lr {rate:.1e} | norm {norm:.2f} | "
                f"{rows_per_second * seq_len:,.0f} tokens/s | {of_ceiling:.0%} of ceiling | "
                f"{metrics.duration(left)} left",
                flush=True,
            )
            losses.zero_()
            counted_steps, train_seconds = 0, 0.0
    measured = measure(total_steps)

    # ---- what comes out
    state = engine.full_state()
    if log:
        with naming_full_disk(log.run_dir):
            finish(job, here, log, state, measured, unigram, time.perf_counter() - started)
    engine.close()


def finish(
    job: Job,
    here: world.World,
    log: metrics.RunLog,
    state: dict[str, torch.Tensor],
    measured: evaluate.HeldOut,
    unigram: float,
    seconds: float,
) -> None:
    """Write the picture, the export and its card; the first rank's last act."""
    recipe, training = job.recipe, job.recipe.training
    picture = log.draw(unigram)
    log.close()
    manifest = job.data.manifest
    sources = ", ".join(str(source["source"]) for source in manifest.sources)
    card = model_card(
        recipe,
        {
            "held-out loss": f"{measured.loss:.3f} nats over {measured.tokens:,} masked tokens",
            "unigram entropy of the same tokens": f"{unigram:.3f} nats",
            "held-out masked accuracy": f"{measured.masked_accuracy:.2%}",
            "training loss, last logged": f"{log.series('train_loss')[1][-1]:.3f} nats",
            "optimizer steps": f"{training.steps:,}",
            "tokens seen": f"{training.steps * training.rows * recipe.data.seq_len:,}",
            "time": f"{metrics.duration(seconds)} on {here.size} ranks",
        },
        f"{sources}: {manifest.count('train', 'documents'):,} documents and {manifest.count('train', 'tokens'):,} "
        f"tokens for training, {manifest.count('heldout', 'documents'):,} documents held out.",
        "deepspeed scaler/train.py --recipe recipe.yaml --deepspeed_config ds_config.json",
    )
    folder = log.run_dir / "export"
    export(state, model.build(job.config, recipe.seed), job.data.tokenizer, card, folder)
    print(
        f"done in {metrics.duration(seconds)}: held-out loss {measured.loss:.3f}, "
        f"{unigram - measured.loss:.2f} nats under the unigram entropy\n"
        f"  {picture}\n  {folder}\n"
        f"  tensorboard --logdir {log.run_dir.parent}\n  python -m scaler.fill_mask {log.run_dir}"
    )


@command
def main() -> None:
    """Run the command line."""
    arguments = parse()
    here = world.detect()
    if not arguments.dry_run:
        from scaler import engine  # not for the dry run, which needs no DeepSpeed

        try:
            run(arguments, here, engine)
        finally:
            engine.leave()
    elif here.is_first:
        job = resolve(arguments, here)
        run_dir = free_run_dir(arguments.run_dir, job.recipe.name)
        content = plan.plan(job.recipe, job.resolved, job.batch, job.config, job.rows, run_dir)
        print(json.dumps(content, indent=2) if arguments.json else plan.render(content))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
