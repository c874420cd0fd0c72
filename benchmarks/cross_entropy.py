"""The head over 256,000 entries by itself, forward and backward: `python benchmarks/cross_entropy.py`.

    pip install cut-cross-entropy triton && python benchmarks/cross_entropy.py        # its side is left out without it

Scores of hidden states (positions, width) over all entries, their mean cross-entropy, and the gradients of hidden
states, weight and bias. In bf16 where the hardware multiplies it:

- "ours": `cross_entropy.WideCrossEntropy`
- "dense fp32", "dense": all scores at once in fp32, or as the model computes
- "torch": `torch.nn.functional.linear_cross_entropy`
- "cut-cross-entropy": of Apple's package the path that runs on CPUs, which torch.compile makes; it has no bias

Each measurement is a process of its own, and they take turns. Memory is the peak beyond inputs and gradients; errors
are those of the gradients, relative to fp32's of the same numbers (root of the sum of squares).
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import measurements
import torch
from torch.nn import functional

from scaler.distributed import devices
from scaler.model.kernels import cross_entropy

WIDTH, WEIGHT_SCALE, BIAS_SCALE = 768, 0.04, 0.1
SIDES = ("ours", "dense fp32", "dense", "torch", "cut-cross-entropy")
Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def problem(positions: int, entries: int, dtype: torch.dtype) -> Tensors:
    """Hidden states, weight and bias, whose gradients are wanted, and labels."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(positions, WIDTH), torch.randn(entries, WIDTH).mul_(WEIGHT_SCALE)
    bias, labels = torch.randn(entries).mul_(BIAS_SCALE), torch.randint(entries, (positions,))
    hidden, weight, bias = (found.to(torch.bfloat16).to(dtype).requires_grad_() for found in (hidden, weight, bias))
    return hidden, weight, bias, labels


def dense(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """All scores at once."""
    return functional.cross_entropy(functional.linear(hidden, weight, bias).float(), labels)


def ours(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The project's."""
    found = cross_entropy.WideCrossEntropy.apply(
        hidden, weight, bias, labels, cross_entropy.entries_at_once(len(hidden))
    )
    assert isinstance(found, torch.Tensor)
    return found


def loss_of(side: str) -> Callable[..., torch.Tensor]:
    """What a side calls."""
    if side == "torch":
        return lambda hidden, weight, bias, labels: functional.linear_cross_entropy(
            hidden, weight, labels, linear_bias=bias
        )
    if side == "cut-cross-entropy":
        from cut_cross_entropy import linear_cross_entropy

        return lambda hidden, weight, bias, labels: linear_cross_entropy(hidden, weight, labels, impl="torch_compile")
    return ours if side == "ours" else dense


def one(side: str, positions: int, entries: int, turns: int) -> dict[str, object]:
    """Seconds of each turn but the first, most bytes of any, the loss, and the gradients' errors."""
    cpu = torch.device("cpu")
    native = devices.bf16_is_native(cpu)
    given = problem(positions, entries, torch.bfloat16 if native and side != "dense fp32" else torch.float32)
    leaves, call, seconds, extra = given[:3], loss_of(side), [], 0
    for _ in range(turns + 1):
        for leaf in leaves:
            leaf.grad = None
        gc.collect()
        devices.forget_peak(cpu)
        before, start = devices.memory_bytes(cpu), time.perf_counter()
        loss = call(*given)
        loss.backward()
        seconds.append(time.perf_counter() - start)
        gradients = sum(leaf.grad.nbytes for leaf in leaves if leaf.grad is not None)
        extra = max(extra, devices.memory_bytes(cpu, peak=True) - before - gradients)
    found = {"seconds": seconds[1:], "extra": extra, "loss": float(loss)}
    if side in ("ours", "dense"):
        exact = problem(positions, entries, torch.float32)
        dense(*exact).backward()
        found["errors"] = [
            float((leaf.grad.float() - true.grad).norm() / true.grad.norm())
            for leaf, true in zip(leaves, exact[:3], strict=True)
        ]
    return found


def main() -> None:
    """Take turns, print a table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=16 * 77, help="that are masked: those of 16 rows of 512")
    parser.add_argument("--entries", type=int, default=256_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.one, arguments.positions, arguments.entries, 2)))
        return
    sides = [side for side in SIDES if side != "cut-cross-entropy" or importlib.util.find_spec("cut_cross_entropy")]
    size = ["--positions", str(arguments.positions), "--entries", str(arguments.entries)]
    environ = {**os.environ, "OMP_NUM_THREADS": str(os.cpu_count())}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    found: dict[str, dict[str, object]] = {}
    for _ in range(arguments.turns):
        for side in sides:
            command = [sys.executable, __file__, "--one", side, *size]
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
            if done.returncode:
                raise SystemExit(f"{side}: {done.stderr[-2000:]}")
            found[side] = json.loads(done.stdout.splitlines()[-1])
            seconds[side] += found[side]["seconds"]
    print(f"{measurements.machine()}\n| side | seconds | least - most | memory | loss | gradients' errors |")
    print("|---|---|---|---|---|---|")
    medians = {side: statistics.median(times) for side, times in seconds.items()}
    for side, times in seconds.items():
        errors = " ".join(f"{error:.1e}" for error in found[side].get("errors", ()))
        print(
            f"| {side} | {medians[side]:.2f} | {min(times):.2f} - {max(times):.2f} |"
            f" {found[side]['extra'] / 1e6:,.0f} MB | {found[side]['loss']:.5f} | {errors} |"
        )
    what = f"head of {arguments.entries:,} entries, {arguments.positions:,} positions, forward and backward"
    lines = [
        measurements.Measurement(f"{what}, ours / {side}", medians["ours"], medians[side], "s", len(seconds[side]))
        for side in sides[1:]
    ]
    print("\n".join(f"{line.peer / line.ours:.2f} x as fast as {line.measure.split(' / ')[1]}" for line in lines))
    print(measurements.write(f"cross_entropy-{arguments.entries}", lines))


if __name__ == "__main__":
    main()
