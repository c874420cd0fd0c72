"""Where a training step's time goes, and how near it is to the machine's ceiling: `python benchmarks/step_profile.py`.

    python benchmarks/step_profile.py --recipe aws_roberta --out runs/profile           # after `make data RECIPE=...`
    torchrun --nproc_per_node 2 benchmarks/step_profile.py --recipe aws_roberta --out runs/profile

The ceiling is the rate of matrix multiplications alone, at the model's own shapes and in the precision of the step,
measured between the measured steps, as is how long a step waits for its rows. Then steps are taken under torch's
profiler, whose own cost is left out: each part has its share of the operators' own time. What the profiler writes down
takes memory out of the heap, and a tensor that finds none left there is new memory, of which each page is a fault:
copies to it take ten times as long. A training has no such faults after some sixty steps, so of three times as many
profiled steps those count that had the fewest. Rank 0's; writes profile.json, profile.md and profile.png.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import measurements
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from scaler.config import deepspeed as ds_config
from scaler.distributed import collectives
from scaler.distributed.world import World, detect_world
from scaler.engine import engine, process_group
from scaler.model import masked_lm, parameters
from scaler.training import job, loop
from scaler.training.job import Job
from scaler.training.progress import Progress

# Parts of a step by the names of operators; the first that an operator's name begins with. What is left is "other".
PARTS: dict[str, tuple[str, ...]] = {
    "matrix multiplications": ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear", "aten::matmul", "mkldnn::"),
    "attention": (
        *("aten::_scaled_dot", "aten::scaled_dot", "_Attention", "aten::_softmax", "aten::masked_fill", "aten::where"),
        *("aten::index_select", "aten::index_copy"),  # documents in and out of their rows
    ),
    "norms": ("aten::native_layer_norm",),
    "activations": ("aten::gelu", "aten::relu", "aten::threshold", "aten::tanh"),
    "dropout": (
        "aten::random_",
        "_Dropped",
        "aten::bernoulli",
        "aten::native_dropout",
        "aten::_fused_dropout",
        "aten::dropout",
    ),
    "loss": ("aten::_log_softmax", "aten::nll_loss", "aten::cross_entropy", "aten::exp", "aten::logsumexp"),
    "embeddings": ("aten::embedding", "aten::index", "aten::gather", "aten::scatter"),
    "optimizer": ("aten::_fused_adamw", "aten::_foreach", "aten::linalg_vector_norm", "aten::norm"),
    "communication": ("gloo:", "c10d::", "nccl:"),
    "copies": ("aten::copy_", "aten::cat", "aten::zero_", "aten::fill_", "aten::clone", "aten::_to_copy"),
    "sums and products": ("aten::add", "aten::mul", "aten::div", "aten::sum", "aten::sub"),
}
DATA = "data"
SECONDS_OF_A_SHAPE = 0.3
TRIES = 3  # profiled steps for each that counts


def part_of(name: str) -> str:
    """The part of a step that an operator belongs to."""
    if name == DATA:
        return DATA
    return next((part for part, begins in PARTS.items() if name.startswith(begins)), "other")


def products(network: nn.Module, tokens: int, masked: int) -> Counter[tuple[int, int, int]]:
    """Shapes (rows, in, out) of all products with weights in a forward pass, and how often."""
    encoder = {id(module) for module in network.base_model.modules()}
    shapes: Counter[tuple[int, int, int]] = Counter()
    for module in network.modules():
        if isinstance(module, nn.Linear):
            shapes[(tokens if id(module) in encoder else masked, module.in_features, module.out_features)] += 1
    return shapes


def matmul_flops(shapes: Counter[tuple[int, int, int]], dtype: torch.dtype) -> float:
    """Operations a second of products of these shapes, forward and both of the backward pass."""
    operations = seconds = 0.0
    for (rows, inner, outer), count in shapes.items():
        left, weight = torch.randn(rows, inner, dtype=dtype), torch.randn(outer, inner, dtype=dtype)
        gradient, times = torch.randn(rows, outer, dtype=dtype), []
        end = time.perf_counter() + SECONDS_OF_A_SHAPE
        while len(times) < 3 or time.perf_counter() < end:
            start = time.perf_counter()
            left @ weight.T
            gradient @ weight
            gradient.T @ left
            times.append(time.perf_counter() - start)
        operations += count * 6 * rows * inner * outer
        seconds += count * statistics.median(times)
    return operations / seconds


def page_faults() -> int:
    """Of this process, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def measure(this: Job, world: World, steps: int, warmup: int) -> dict[str, Any]:
    """Alternate steps with measurements of the ceiling, then profile as many steps."""
    network = job.starting_point(this, this.data.manifest.unigram_counts())
    running = engine.Engine(masked_lm.MaskedLM(network), this.recipe.optimizer, this.ds_config)
    running.train(True)
    recipe, batch, progress = this.recipe, this.batch, Progress()
    masked = recipe.masked_per_row(0.0)
    shapes = products(network, batch.micro_rows * recipe.data.seq_len, batch.micro_rows * masked)
    reader, inner = this.rows["train"], this.rows["train"].at

    waits: list[float] = []

    def at(*arguments: int) -> Any:
        start = time.perf_counter()
        with torch.profiler.record_function(DATA):
            rows = inner(*arguments)
        waits.append(time.perf_counter() - start)
        return rows

    reader.at = at  # type: ignore[method-assign]

    def step() -> float:
        start = time.perf_counter()
        loop.train_batch(running, this, progress, world)
        progress.step += 1
        progress.consumed_rows += batch.rows
        return time.perf_counter() - start

    for _ in range(warmup):  # while the heap grows
        step()
    seconds, ceilings = [], []
    waits.clear()
    for _ in range(steps):
        seconds.append(step())
        collectives.total(torch.zeros(1))
        ceilings.append(matmul_flops(shapes, torch.bfloat16 if running.bf16 else torch.float32))
    waiting = statistics.median(waits) * batch.accumulation
    profiled = []
    for _ in range(TRIES * steps):
        with profile(activities=[ProfilerActivity.CPU]) as taken:
            before = page_faults()
            step()
            faults = page_faults() - before
        profiled.append((faults, {event.key: event.self_cpu_time_total for event in taken.key_averages()}))
    profiled = sorted(profiled, key=lambda one: one[0])[:steps]
    operators: Counter[str] = Counter()
    for _, times in profiled:
        operators.update(times)
    parts: Counter[str] = Counter()
    for name, spent in operators.items():
        parts[part_of(name)] += spent
    whole = sum(parts.values())
    operations = parameters.flops_per_row(network, recipe.data.seq_len, masked) * batch.rows / batch.ranks
    ceiling, took = statistics.median(ceilings), statistics.median(seconds)
    return {
        "step_seconds": took,
        "waiting_seconds": waiting,
        "ceiling_gflops": ceiling / 1e9,
        "step_gflops": operations / took / 1e9,
        "share_of_ceiling": operations / took / ceiling,
        "tokens_per_second": batch.rows * recipe.data.seq_len / took,
        "parts": {part: time / whole for part, time in parts.most_common()},
        "operators": {name: spent / whole for name, spent in operators.most_common(25)},
        "page_faults": statistics.mean(faults for faults, _ in profiled),
        "runs": steps,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="aws_roberta")
    parser.add_argument("--deepspeed_config", type=Path, default=ds_config.DEFAULT_DS_CONFIG)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=6)
    parser.add_argument("overrides", nargs="*", default=[])
    arguments = parser.parse_intermixed_args()
    arguments.overrides = arguments.overrides or ["training.rows=16", "training.max_micro_rows=4"]
    world = detect_world()
    process_group.join(world)
    asked = argparse.Namespace(
        **vars(arguments), run_dir=None, ranks=None, allow_changes=False, allow_untested_ds_keys=False
    )
    found = measure(job.resolve(asked, world), world, arguments.steps, arguments.warmup)
    process_group.leave()
    if not world.is_first:
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "profile.json").write_text(json.dumps(found, indent=1))
    table = [f"{measurements.machine()}, {world.size} ranks", "| part | share of the operators' time |", "|---|---|"]
    table += [f"| {part} | {share:.1%} |" for part, share in found["parts"].items()]
    table.append(
        f"\na step takes {found['step_seconds']:.3g} s, {found['tokens_per_second']:,.0f} tokens/s: "
        f"{found['step_gflops']:,.0f} of {found['ceiling_gflops']:,.0f} GFLOP/s, {found['share_of_ceiling']:.0%}"
        f"\na profiled step has {found['page_faults']:,.0f} page faults"
    )
    (arguments.out / "profile.md").write_text("\n".join(table) + "\n")
    print("\n".join(table))
    print("\n".join(f"{share:6.1%} {name}" for name, share in found["operators"].items()))
    draw(found, arguments.out / "profile.png")
    what, took = f"{arguments.recipe}, {world.size} ranks", found["step_seconds"]
    lines = [
        measurements.Measurement(f"{name}, {what}", *pair, unit, arguments.steps)
        for name, pair, unit in (
            (
                "rate of a whole step / of its matrix products alone",
                (found["step_gflops"], found["ceiling_gflops"]),
                "GFLOP/s",
            ),
            ("waiting for data / a step", (found["waiting_seconds"], took), "s"),
        )
    ]
    print(measurements.write("step_profile", lines))


def draw(found: dict[str, Any], path: Path) -> None:
    """The parts as bars, longest on top."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    parts = dict(reversed(found["parts"].items()))
    figure, axes = pyplot.subplots(figsize=(8, 0.35 * len(parts) + 1.2), layout="constrained")
    axes.margins(x=0.12)
    bars = axes.barh(list(parts), [100 * share for share in parts.values()])
    axes.bar_label(bars, fmt="%.1f %%", padding=3)
    axes.set_xlabel("% of the operators' own time")
    axes.set_title(f"{found['share_of_ceiling']:.0%} of the machine's matrix-multiply rate at these shapes")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
