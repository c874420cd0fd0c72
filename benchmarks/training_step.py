r"""A training step beside Transformers' Trainer as its run_mlm.py uses it: `python benchmarks/training_step.py`.

    python benchmarks/training_step.py --recipe aws_roberta              # after `make data RECIPE=aws_roberta`
    python benchmarks/training_step.py --recipe aws_roberta --ranks 2

and for DistilBERT, whose 256,000 embeddings are more than the tokenizer of so small a text has entries:

    python -m data_prep --recipe benchmarks/distilbert_wide.yaml
    python benchmarks/training_step.py --recipe benchmarks/distilbert_wide.yaml -- tokenizer.vocab_size=256000 \
        training.rows=8 training.max_micro_rows=4

Same text, model, batch and micro-batch on all sides; each measurement is a process of its own, and they take turns.

- "ours": a point of a study (`scaler.studies.point`), that is the steps of a training at ZeRO-2; with the recipe's own
  dropout, with none, and with run_mlm's
- "run_mlm": the Trainer at the settings of run_mlm.py: fp32, dropout 0.1 everywhere, its collator; "run_mlm, bf16"
  computes in bf16, without dropout
- "run_mlm, documents": the same with a document a row (`--line_by_line`), padded to the longest of its micro-batch
- "best": what can be had without a harness: a plain loop in bf16, without dropout, scores of masked positions alone,
  fused AdamW; "compiled" with torch.compile, whose first steps do not count; "allocator" with freed memory kept, as
  ours keeps it
- "DDP", on several ranks: our own model and batches without DeepSpeed: DistributedDataParallel, bf16 weights with fp32
  copies that a fused AdamW updates

Tokens are those of the text: padding counts as nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measurements
import numpy as np
import torch
from torch import nn

from scaler.config.batch import solve_batch
from scaler.config.recipe import Recipe, load
from scaler.data import prepared
from scaler.data import tokenizer as data_tokenizer
from scaler.distributed import collectives, devices
from scaler.distributed.world import detect_world
from scaler.engine.patches import allocator
from scaler.model import build
from scaler.model import masked_lm as model
from scaler.studies import folder as study_folder

CONFIG = Path(__file__).resolve().parent.parent / "ds_configs" / "zero2.json"
ROWS_OF_PEERS = 256  # packed rows that the peers' text is cut from
BUCKET = 50_000_000


@dataclass(frozen=True)
class Side:
    """One way to train.

    Attributes:
        kind: "engine", "trainer", "plain" or "ddp".
        dropout: of hidden states and attention; None: the recipe's.
        bf16: the peers compute in it, where the hardware does.
        documents: a document a row.
        compiled: by torch.compile.
        keeps: freed memory, by glibc's own variables; ours does so by itself.
    """

    kind: str
    dropout: float | None = None
    bf16: bool = False
    documents: bool = False
    compiled: bool = False
    keeps: bool = False


SIDES = {
    "ours": Side("engine"),
    "ours, no dropout": Side("engine", 0.0),
    "ours, dropout": Side("engine", 0.1),
    "run_mlm": Side("trainer", 0.1),
    "run_mlm, documents": Side("trainer", 0.1, documents=True),
    "run_mlm, bf16": Side("trainer", 0.0, bf16=True),
    "best": Side("plain", 0.0, bf16=True),
    "best, compiled": Side("plain", 0.0, bf16=True, compiled=True),
    "best, allocator": Side("plain", 0.0, bf16=True, keeps=True),
    "best, compiled, allocator": Side("plain", 0.0, bf16=True, compiled=True, keeps=True),
    "DDP": Side("ddp", 0.0, bf16=True),
}
RATIOS = [  # what is divided by what
    *(("ours, dropout", "run_mlm"), ("ours, no dropout", "run_mlm"), ("ours, dropout", "run_mlm, documents")),
    *(("ours, no dropout", "run_mlm, documents"), ("ours, no dropout", "run_mlm, bf16")),
    *(
        ("ours, no dropout", name)
        for name in ("best", "best, compiled", "best, allocator", "best, compiled, allocator")
    ),
    ("ours, no dropout", "DDP"),
]


# ---- the peers' text


def packed_rows(recipe: Recipe) -> list[np.ndarray]:
    """Rows of the training split as they are stored, unmasked, int64 (seq_len,) each."""
    reader = prepared.open_prepared(recipe).rows("train", recipe, 0)
    ids, _, _ = reader.assemble(np.arange(min(ROWS_OF_PEERS, len(reader.rows))))
    return list(ids)


def documents(rows: list[np.ndarray], begin_id: int) -> list[np.ndarray]:
    """The documents in these rows."""
    return [part for row in rows for part in np.split(row, np.flatnonzero(row == begin_id)[1:])]


# ---- sides


def trained_by_the_trainer(side: Side, recipe: Recipe, steps: int, warmup: int) -> dict[str, Any]:
    """Take steps as run_mlm.py does: its collator, the Trainer's defaults but for length and logs."""
    from datasets import Dataset
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainerCallback, TrainingArguments

    tokenizer = data_tokenizer.load_tokenizer(recipe.tokenizer_folder)
    rows = packed_rows(recipe)
    texts = documents(rows, tokenizer.bos_token_id or tokenizer.cls_token_id) if side.documents else rows
    special = np.isin(np.arange(len(tokenizer)), tokenizer.all_special_ids)
    base = devices.memory_bytes(torch.device("cpu"))
    network = network_of(recipe)
    given = Dataset.from_dict(
        {
            "input_ids": [text.tolist() for text in texts],
            "attention_mask": [[1] * len(text) for text in texts],
            "special_tokens_mask": [special[text].astype(int).tolist() for text in texts],
        }
    )
    collate, counted = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15), [0]

    class Counting(Trainer):
        def training_step(self, network: Any, inputs: Any, *rest: Any) -> Any:
            counted[0] += int(inputs["attention_mask"].sum())  # not in the collator, which runs ahead
            return super().training_step(network, inputs, *rest)

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if not times:
                times.append(time.perf_counter())
            if len(times) == warmup + 1:
                devices.forget_peak(torch.device("cpu"))
                counted[1:] = [counted[0]]

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    batch = solve_batch(recipe.training.rows, detect_world().size, recipe.training.max_micro_rows)
    with tempfile.TemporaryDirectory() as folder:
        asked = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=batch.micro_rows,
            gradient_accumulation_steps=batch.accumulation,
            max_steps=warmup + steps,
            use_cpu=True,
            bf16=side.bf16 and native(),
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        Counting(network, asked, data_collator=collate, train_dataset=given, callbacks=[Clock()]).train()
    tokens = (counted[0] - counted[1]) / steps * batch.ranks
    peak = devices.memory_bytes(torch.device("cpu"), peak=True) - base
    return {"seconds": np.diff(times)[warmup:].tolist(), "tokens": tokens, "peak": peak}


def trained_plainly(side: Side, recipe: Recipe, steps: int, warmup: int) -> dict[str, Any]:
    """Take steps of a plain loop: what one would write by hand, with all that torch and Transformers offer."""
    base = devices.memory_bytes(torch.device("cpu"))
    network = network_of(recipe)
    encoder: Callable[..., Any] = torch.compile(network.base_model) if side.compiled else network.base_model
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6, weight_decay=0.01, fused=True)
    batch = solve_batch(recipe.training.rows, 1, recipe.training.max_micro_rows)
    head = HEADS[network.config.model_type]
    rows, masked = packed_rows(recipe), recipe.masked_per_row(0.0)
    mask_id = data_tokenizer.load_tokenizer(recipe.tokenizer_folder).mask_token_id

    def micro_batches() -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        draws = np.random.default_rng(0)
        while True:
            ids = torch.from_numpy(np.stack([rows[n] for n in draws.integers(len(rows), size=batch.micro_rows)]))
            places = torch.rand(ids.shape).topk(masked).indices.sort().values  # (rows, masked)
            yield ids.scatter(1, places, mask_id), places, ids.gather(1, places)

    given, seconds = micro_batches(), []
    for number in range(warmup + steps):
        if number == warmup:
            devices.forget_peak(torch.device("cpu"))
        start = time.perf_counter()
        for _ in range(batch.accumulation):
            ids, places, labels = next(given)
            with torch.autocast("cpu", torch.bfloat16, enabled=side.bf16 and native()):
                hidden = encoder(input_ids=ids).last_hidden_state  # (rows, seq_len, hidden)
                hidden = hidden.gather(1, places.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
                logits = functools.reduce(lambda given, part: network.get_submodule(part)(given), head, hidden)
                loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
            (loss / batch.accumulation).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    peak = devices.memory_bytes(torch.device("cpu"), peak=True) - base
    return {"seconds": seconds[warmup:], "tokens": batch.rows * recipe.data.seq_len, "peak": peak}


def trained_by_ddp(side: Side, recipe: Recipe, steps: int, warmup: int) -> dict[str, Any]:
    """Take steps of our model on our batches without DeepSpeed: each rank keeps all of AdamW's state."""
    world, cpu = detect_world(), torch.device("cpu")
    torch.distributed.init_process_group("gloo")
    allocator.install()
    base = devices.memory_bytes(cpu)
    network = network_of(recipe)
    reader = prepared.open_prepared(recipe).rows("train", recipe, build.first_position(network.config))
    masked_lm = model.MaskedLM(network).to(torch.bfloat16 if side.bf16 and native() else torch.float32)
    network.get_input_embeddings().sparse = False  # DDP would take the whole gradient for a sparse one
    wrapped = nn.parallel.DistributedDataParallel(masked_lm, gradient_as_bucket_view=True)
    weights = list(wrapped.parameters())
    masters = [weight.detach().float() for weight in weights]
    optimizer = torch.optim.AdamW(masters, lr=1e-6, weight_decay=0.01, fused=True)
    batch = solve_batch(recipe.training.rows, world.size, recipe.training.max_micro_rows)
    times = []
    for number in range(warmup + steps):
        if number == warmup:
            devices.forget_peak(cpu)
        start = time.perf_counter()
        first = number * batch.rows + world.rank * batch.micro_rows * batch.accumulation
        for micro in range(batch.accumulation):
            with contextlib.nullcontext() if micro == batch.accumulation - 1 else wrapped.no_sync():
                loss, _ = wrapped(reader.at(first + micro * batch.micro_rows, batch.micro_rows))
                (loss / batch.accumulation).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for weight, master in zip(weights, masters, strict=True):
            assert weight.grad is not None
            master.grad = weight.grad.float()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for weight, master in zip(weights, masters, strict=True):
                weight.copy_(master)
        wrapped.zero_grad()
        times.append(time.perf_counter() - start)
    peak = max(collectives.all_gather(devices.memory_bytes(cpu, peak=True) - base, world))
    slowest = [max(step) for step in zip(*collectives.all_gather(times, world), strict=True)]
    del wrapped  # where its reducer is the last to hold the process group, torch 2.13 may hang as it lets go
    torch.distributed.destroy_process_group()
    return {"seconds": slowest[warmup:], "tokens": batch.rows * recipe.data.seq_len, "peak": peak}


HEADS = {  # the modules of a model's head, one after the other, as a plain loop can call them
    "roberta": ("lm_head",),
    "distilbert": ("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),
}
DROPOUTS = {  # what a model calls that of hidden states and of attention
    "roberta": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "distilbert": ("dropout", "attention_dropout"),
}


def recipe_of(side: Side, arguments: argparse.Namespace) -> Recipe:
    """The recipe as this side trains it."""
    recipe = load(arguments.recipe, arguments.overrides)
    if side.dropout is None:
        return recipe
    model_type = recipe.model["model_type"]
    if model_type not in DROPOUTS:
        raise SystemExit(
            f"{arguments.recipe}: model_type={model_type}, but the sides are built for {', '.join(DROPOUTS)}"
        )
    names = DROPOUTS[model_type]
    return load(arguments.recipe, [*arguments.overrides, *(f"model.{name}={side.dropout}" for name in names)])


def network_of(recipe: Recipe) -> Any:
    """The recipe's model, as all sides have it."""
    data = prepared.open_prepared(recipe)
    config = build.configuration_of(recipe, data.vocabulary)
    return build.build(config, recipe.seed).train()


def native() -> bool:
    """The hardware multiplies bf16."""
    return devices.bf16_is_native(torch.device("cpu"))


# ---- taking turns


def measured(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One side, in processes of its own: tokens/s by step, bytes at the peak of a rank."""
    side, ranks = SIDES[name], arguments.ranks
    threads = arguments.threads or max(1, (os.cpu_count() or 1) // ranks)
    environ = {**os.environ, "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    if side.keeps:
        environ |= dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(allocator.MOST))
    starts = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--standalone"]
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        if side.kind == "engine":
            recipe = recipe_of(side, arguments)
            (folder / study_folder.RECIPE).write_text(recipe.to_yaml())
            rows = recipe.training.rows
            micro = solve_batch(rows, ranks, recipe.training.max_micro_rows).micro_rows
            point = study_folder.Point("strong", 1, ranks, 2, False, BUCKET, rows, micro)
            study_folder.write_point(folder, point, json.loads(CONFIG.read_text()))
            words = ["-m", "scaler.studies.point", str(folder), point.name]
            words += ["--steps", str(arguments.steps), "--warmup", str(arguments.warmup)]
            subprocess.run([*starts, *words], env=environ, check=True, capture_output=True)
            found = study_folder.read_measured(study_folder.folder_of(folder, point))
            assert found is not None
            seconds = [max(step) for step in zip(*found.step_seconds, strict=True)]
            return {"rates": [rows * found.tokens_per_row / s for s in seconds], "peak": max(found.peak_bytes)}
        out = folder / "found.json"
        words = [__file__, "--one", name, str(out), "--recipe", arguments.recipe, "--steps", str(arguments.steps)]
        words += ["--warmup", str(arguments.warmup), *arguments.overrides]
        command = [sys.executable, *words] if ranks == 1 else [*starts, *words]
        done = subprocess.run(command, env=environ, check=False, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{name}: {done.stderr[-3000:]}")
        content = json.loads(out.read_text())
        return {"rates": [content["tokens"] / s for s in content["seconds"]], "peak": content["peak"]}


def one(name: str, out: Path, arguments: argparse.Namespace) -> None:
    """Measure a peer in this process."""
    side = SIDES[name]
    recipe = recipe_of(side, arguments)
    train = {"trainer": trained_by_the_trainer, "plain": trained_plainly, "ddp": trained_by_ddp}[side.kind]
    found = train(side, recipe, arguments.steps, arguments.warmup)
    if detect_world().is_first:
        out.write_text(json.dumps(found))


def main() -> None:
    """Take turns, print a table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="aws_roberta")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--threads", type=int, help="of a rank (all cores, shared by the ranks)")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="that are measured in a turn")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--gigabytes", type=float, help="of memory, which the peaks of ours are set against")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", default=[])
    arguments = parser.parse_intermixed_args()
    if not arguments.overrides:
        arguments.overrides = ["training.rows=16", "training.max_micro_rows=4"]
    if arguments.one:
        one(arguments.one[0], Path(arguments.one[1]), arguments)
        return
    impossible = "ddp" if arguments.ranks == 1 else "plain"
    sides = [name for name in arguments.sides if SIDES[name].kind != impossible]
    rates: dict[str, list[float]] = {name: [] for name in sides}
    peaks: dict[str, int] = dict.fromkeys(sides, 0)
    for turn in range(arguments.turns):
        for name in sides:
            found = measured(name, arguments)
            rates[name] += found["rates"]
            peaks[name] = max(peaks[name], found["peak"])
            print(f"turn {turn + 1}, {name}: {statistics.median(found['rates']):,.0f} tokens/s", flush=True)
    print(f"\n{measurements.machine()}\n| side | tokens/s | least - most | peak of a rank |\n|---|---|---|---|")
    for name, found in rates.items():
        span = f"{min(found):,.0f} - {max(found):,.0f}"
        print(f"| {name} | {statistics.median(found):,.0f} | {span} | {peaks[name] / 1e9:.2f} GB |")
    name_of_recipe = Path(arguments.recipe).stem
    lines = [
        measurements.Measurement(
            f"training tokens/s, {name_of_recipe}, {arguments.ranks} ranks, {ours} / {peer}",
            *(statistics.median(rates[name]) for name in (ours, peer)),
            "tokens/s",
            len(rates[ours]),
        )
        for ours, peer in RATIOS
        if ours in rates and peer in rates
    ]
    asked = " ".join(arguments.overrides)
    lines += [
        measurements.Measurement(
            f"peak of a rank / the memory that there is, {name_of_recipe} {asked}, {name}",
            peaks[name] / 1e9,
            arguments.gigabytes,
            "GB",
            len(rates[name]),
        )
        for name in sides
        if arguments.gigabytes and SIDES[name].kind == "engine"
    ]
    print("\n".join(f"{line.measure}: {line.ratio:.2f} x" for line in lines))
    print(measurements.write(f"training_step-{name_of_recipe}-{arguments.ranks}", lines))


if __name__ == "__main__":
    main()
