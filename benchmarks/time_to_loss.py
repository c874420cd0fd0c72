"""Wall-clock to a held-out loss, beside run_mlm.py's training: `python benchmarks/time_to_loss.py` after `make data`.

Same text, tokenizer, architecture and held-out rows. The clock runs from the start of a side's command, imports and
evaluations included, until it has shown a loss below `--loss`; a side that has not after `--patience` times the time of
ours is stopped.

- "ours": `scaler.train` with the recipe as it is, on as many ranks as there are cores
- "run_mlm": Transformers' Trainer as run_mlm.py sets it up from its README's command: fp32, dropout 0.1, 15 % masked,
  batches of 8 rows, a rate of 5e-5 that falls to 0 over three epochs, all cores
- "run_mlm, tuned RATE": the same with no dropout, bf16 where the hardware has it, the recipe's mean share of masks, and
  over the recipe's own steps and rows a rate that rises over their first 4 % to RATE and falls to 0

Ours runs before each of the others. All are scored on the same masks, 15 % of the held-out rows. Each model reads these
as it was trained to: run_mlm's sees a row's documents as one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measurements
import numpy as np
import torch

from scaler.config.recipe import load
from scaler.data import prepared
from scaler.data.batches import Batch
from scaler.distributed import devices
from scaler.distributed.world import detect_world
from scaler.evaluation import heldout
from scaler.model import build, masked_lm

SHOWN = re.compile(r"held-out loss (\d+\.\d+)")
EVALUATE_EVERY = 200  # steps
TUNED = (1e-3, 3e-3)


def peer(recipe_name: str, rate: float | None, overrides: list[str]) -> None:
    """Train as run_mlm.py does, and show the held-out loss now and then."""
    from datasets import Dataset
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainerCallback, TrainingArguments

    recipe = load(recipe_name, [*overrides, "objective.mask_probability=0.15", "objective.final_mask_probability=null"])
    data = prepared.open_prepared(recipe)
    dropout = 0.1 if rate is None else 0.0
    settings = {**recipe.model, "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = build.configuration(settings, data.vocabulary, recipe.tokenizer.vocab_size, recipe.data.seq_len)
    network = build.build(config, recipe.seed)
    reader = data.rows("train", recipe, build.first_position(config))
    held_out = data.rows("heldout", recipe, build.first_position(config))
    ids = reader.assemble(np.arange(len(reader.rows)))[0]
    special = np.isin(ids, data.tokenizer.all_special_ids)
    given = Dataset.from_dict({"input_ids": ids, "special_tokens_mask": special.astype(np.int8)})

    def scored(batch: Batch) -> tuple[None, masked_lm.Scores]:
        logits = network(input_ids=batch.input_ids).logits
        there = batch.masked_positions.unsqueeze(-1).expand(-1, -1, logits.shape[-1])
        flat, labels = logits.gather(1, there).flatten(0, 1), batch.labels.flatten()
        return None, masked_lm.score(lambda some: some, flat, labels, masked_lm.positions_at_once(logits.shape[-1]))

    class Show(TrainerCallback):
        def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            if state.global_step % EVALUATE_EVERY == 0:
                network.eval()
                found = heldout.evaluate(scored, held_out, 8, detect_world())
                network.train()
                print(f"step {state.global_step} | held-out loss {found.loss:.3f}", flush=True)

    asked: dict[str, Any] = {"num_train_epochs": 3, "per_device_train_batch_size": 8}
    if rate is not None:
        asked = {
            "max_steps": recipe.training.steps,
            "per_device_train_batch_size": recipe.training.rows,
            "learning_rate": rate,
            "warmup_steps": round(recipe.schedule.warmup_share * recipe.training.steps),
            "adam_beta2": recipe.optimizer.betas[1],
            "bf16": devices.bf16_is_native(torch.device("cpu")),
        }
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_strategy="no",
            **asked,
        )
        share = 0.15 if rate is None else load(recipe_name, overrides).objective.at(0.5)
        collate = DataCollatorForLanguageModeling(data.tokenizer, mlm_probability=share)
        Trainer(network, arguments, data_collator=collate, train_dataset=given, callbacks=[Show()]).train()


def timed(command: list[str], threads: int, loss: float, limit: float) -> tuple[float | None, float]:
    """Seconds until a command shows such a loss, None where it ends or the limit comes before; and its lowest."""
    environ = {**os.environ, "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    start, lowest = time.perf_counter(), float("inf")
    with subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as running:
        assert running.stdout is not None
        try:
            for line in running.stdout:
                shown, passed = SHOWN.search(line), time.perf_counter() - start
                if shown:
                    lowest = min(lowest, float(shown[1]))
                    if lowest <= loss:
                        return passed, lowest
                if passed > limit:
                    return None, lowest
        finally:
            running.terminate()  # a launcher ends its ranks, which have sessions of their own
            try:
                running.wait(60)
            except subprocess.TimeoutExpired:
                running.kill()
    return None, lowest


def main() -> None:
    """Run the sides one after the other, print a table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--loss", type=float, default=4.25, help="nats a masked token")
    parser.add_argument("--patience", type=float, default=6.0, help="times the time of ours")
    parser.add_argument("--shipped", action=argparse.BooleanOptionalAction, default=True, help="run_mlm as it is")
    parser.add_argument("--rates", type=float, nargs="*", default=TUNED, help="of the tuned sides")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", default=[])
    arguments = parser.parse_intermixed_args()
    if arguments.peer:
        peer(arguments.recipe, json.loads(arguments.peer), arguments.overrides)
        return
    cores = os.cpu_count() or 1
    rates = [*([None] if arguments.shipped else []), *arguments.rates]
    times, peers = [], []
    for turn, rate in enumerate(rates):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={cores}"]
            command += ["-m", "scaler.train", "--recipe", arguments.recipe, "--run_dir", str(Path(folder) / "run")]
            command += [f"training.evaluate_every={EVALUATE_EVERY}", f"seed={turn}", *arguments.overrides]
            seconds, lowest = timed(command, 1, arguments.loss, float("inf"))
        if seconds is None:
            raise SystemExit(f"ours ended at {lowest:g} nats; ask for a --loss above that")
        times.append(seconds)
        print(f"ours, seed {turn}: {seconds:.1f} s", flush=True)
        name = "run_mlm" if rate is None else f"run_mlm, tuned {rate:g}"
        command = [sys.executable, __file__, "--recipe", arguments.recipe, "--peer", json.dumps(rate)]
        limit = arguments.patience * max(times)
        seconds, lowest = timed([*command, *arguments.overrides], cores, arguments.loss, limit)
        if seconds is None:
            name, seconds = f"{name} (stopped at {lowest:.3f}, at least)", limit
        print(f"{name}: {seconds:.1f} s", flush=True)
        peers.append((name, seconds))
    ours = statistics.median(times)
    lines = []
    for name, seconds in peers:
        measure = f"time to a held-out loss of {arguments.loss:g}, {arguments.recipe}, ours / {name}"
        lines.append(measurements.Measurement(measure, ours, seconds, "s", len(times)))
    print(measurements.machine())
    print("\n".join(f"{line.measure}: {line.peer / line.ours:.2f} x as fast" for line in lines))
    print(measurements.write("time_to_loss", lines))


if __name__ == "__main__":
    main()
