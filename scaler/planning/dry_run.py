"""Describe everything that a run would do, without writing anything."""

from __future__ import annotations

import argparse
import json
import textwrap
from dataclasses import asdict, replace
from typing import Any

import torch
import yaml
from transformers import PreTrainedModel

from scaler.config import deepspeed as ds_config
from scaler.config.command_line import chosen_recipe
from scaler.config.deepspeed import FP32_BYTES
from scaler.core.text import quantity
from scaler.distributed.world import World
from scaler.model import embeddings, initialisation
from scaler.model import parameters as model
from scaler.model.kernels import cross_entropy
from scaler.planning import workload
from scaler.planning.memory import Activations, Sharding, memory_of_step
from scaler.training.job import Job, Request, read_request, resolve, vectors

NOT_PREPARED = """note         the model has the recipe's vocabulary size; the tokenizer's own size, numbers of rows
             and epochs, and the part of real tokens are known once the data is prepared
"""


def memory_per_rank(job: Request, empty: PreTrainedModel) -> dict[str, int]:
    """Return the bytes that one rank's device needs, by purpose, without activations but the largest one."""
    precision = ds_config.precision_of(job.ds_config)
    asked = replace(Sharding.from_ds_config(job.ds_config, precision), on_cpu=not torch.cuda.is_available())
    sharding = asked.of_batch(job.batch, len(ds_config.optimizer_state(job.recipe.optimizer)))
    found = memory_of_step(workload.layout(empty, job.recipe), Activations(0, 0, 0), sharding)
    memory = {**found.kept, "gradients and what travels": max(found.backward, found.step)}
    # the largest single activation: masked positions' scores in fp32, and their gradient or their bf16 copies
    positions, entries = job.batch.micro_rows * job.recipe.most_masked_per_row, empty.config.vocab_size
    memory["logits"] = 2 * min(positions * entries, cross_entropy.SCORES_AT_ONCE) * FP32_BYTES
    by_rows = asked.on_cpu and empty.config.tie_word_embeddings
    if not (by_rows or job.recipe.optimizer.frozen_embeddings):
        matrix = entries * embeddings.width(empty.config)
        memory["lookup"] = matrix * ds_config.WEIGHT_BYTES[precision]  # its gradient, before it is added to the head's
    return memory


def describe(job: Request) -> dict[str, Any]:
    """Describe a run without building it, from its settings and, if they are those of a Job, from its data.

    Without data the model has the recipe's vocabulary size, and "rows" and "epochs" are None.
    """
    recipe, resolved, batch = job.recipe, job.ds_config, job.batch
    opened = job if isinstance(job, Job) else None
    empty = workload.empty_model(recipe, opened.config if opened else workload.configuration(recipe))
    # on the meta device this computes nothing, but it refuses what it cannot do
    if recipe.initialisation.word2vec and opened:
        vectors(opened)
    if recipe.initialisation.neighbour_heads:
        initialisation.look_at_neighbours(empty, recipe.initialisation.neighbour_heads)
    layout, seq_len = workload.layout(empty, recipe), recipe.data.seq_len
    megabytes = layout.checkpoint_bytes(len(ds_config.optimizer_state(recipe.optimizer))) / 1e6
    seen = recipe.training.steps * recipe.training.rows
    return {
        "recipe": recipe.to_plain(),
        "ds_config": resolved,
        "batch": asdict(batch),
        "parameters": layout.all,
        "trainable_parameters": layout.trained,
        "what_trains": [list(row) for row in model.what_trains(empty, recipe.optimizer.weight_decay)],
        "rows": None
        if opened is None
        else {
            split: {
                "rows": len(reader.rows),
                "real_token_share": round(reader.rows.real_fraction, 5),
                "masked_per_row": reader.masked,
                "dropped_rows": reader.rows.dropped_rows,
            }
            for split, reader in opened.rows.items()
        },
        "training_masks_per_row": [recipe.masked_per_row(0.0), recipe.masked_per_row(1.0)],
        "steps": recipe.training.steps,
        "tokens": seen * seq_len,
        "epochs": None if opened is None else round(seen / len(opened.rows["train"].rows), 2),
        "training_flops": seen * model.flops_per_row(empty, seq_len, recipe.masked_per_row(0.5)),
        "bytes_per_weight": ds_config.WEIGHT_BYTES[ds_config.precision_of(resolved)],
        "memory_per_rank_bytes": memory_per_rank(job, empty),
        "prepare": None if opened else job.prepare,
        "writes": {
            str(job.run_dir / name): what
            for name, what in {
                "recipe.yaml": "the resolved recipe",
                "ds_config.json": "the DeepSpeed configuration as given",
                "environment.json": "of each start: versions, commit, hosts, the resolved DeepSpeed configuration",
                "metrics.jsonl": "one line a measurement",
                "tensorboard/": "the same for TensorBoard",
                "loss.png": "the loss curves",
                "checkpoints/": f"every {recipe.checkpoint.every} steps, {megabytes:,.0f} MB each",
                "export/": f"Transformers folder, {layout.all * FP32_BYTES / 1e6:.0f} MB",
            }.items()
        },
    }


def render(content: dict[str, Any]) -> str:
    """Render the description as text."""
    batch = content["batch"]
    memory = content["memory_per_rank_bytes"]
    first, last = content["training_masks_per_row"]
    masked = f"{first} masked in each" + ("" if first == last else f" at first, {last} at last")
    rows, epochs = f"not prepared: run `{content['prepare']}`; {masked}", "epochs unknown"
    if content["rows"]:
        train, heldout = content["rows"]["train"], content["rows"]["heldout"]
        real = f"{train['rows']:,} for training, {train['real_token_share']:.2%} real tokens"
        rows, epochs = f"{real}, {masked}; {heldout['rows']:,} held out", f"{content['epochs']} epochs"
    note = "" if content["rows"] else NOT_PREPARED
    writes = "\n".join(f"  {path:<40} {what}" for path, what in content["writes"].items())
    return f"""recipe
{textwrap.indent(yaml.safe_dump(content["recipe"], sort_keys=False, allow_unicode=True).rstrip(), "  ")}
ds_config
{textwrap.indent(json.dumps(content["ds_config"], indent=2), "  ")}
model        {content["parameters"]:,} parameters, {content["trainable_parameters"]:,} of them trained, \
{content["bytes_per_weight"]} bytes each
{textwrap.indent(model.render_table(content["what_trains"]), "  ")}
rows         {rows}
batch        {batch["rows"]} rows = {batch["micro_rows"]} rows x {batch["accumulation"]} accumulation \
x {quantity(batch["ranks"], "rank")}
length       {content["steps"]:,} steps, {content["tokens"]:,} tokens, {epochs}, \
{content["training_flops"]:.2e} floating-point operations
memory       {sum(memory.values()) / 1e6:,.0f} MB a rank before activations: \
{", ".join(f"{name} {size / 1e6:,.0f}" for name, size in memory.items())}
{note}would write
{writes}
"""


def show(arguments: argparse.Namespace, world: World) -> None:
    """Print the dry run of a command line, on the first rank alone. Data that exists is opened and checked."""
    if world.is_first:
        is_prepared = chosen_recipe(arguments)[1].rows_folder.exists()
        content = describe((resolve if is_prepared else read_request)(arguments, world))
        print(json.dumps(content, indent=2) if arguments.json else render(content))
