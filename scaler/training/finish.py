"""End a run: record that it was stopped, or evaluate and export the model."""

from __future__ import annotations

import logging
import time
from typing import Any

from scaler.core.errors import dispensable, explain_disk_errors
from scaler.core.log import RESULT
from scaler.core.text import duration, quantity
from scaler.distributed.collectives import all_or_none
from scaler.distributed.world import World
from scaler.engine.engine import Engine
from scaler.evaluation.heldout import HeldOut
from scaler.model import build, saving
from scaler.model import folder as model_folder
from scaler.training import loop, run_folder
from scaler.training.export import export
from scaler.training.job import Job
from scaler.training.monitor import Monitor
from scaler.training.progress import Progress
from scaler.training.resume import CheckpointPolicy

logger = logging.getLogger(__name__)


def record_stop(job: Job, progress: Progress, policy: CheckpointPolicy, monitor: Monitor, stopped_by: str) -> None:
    """Record that the run was stopped, and log how it goes on."""
    run_dir, steps = job.run_dir, job.recipe.training.steps
    if monitor.log:
        monitor.log.close()
        run_folder.set_state(run_dir, "stopped", step=policy.saved_at, steps=steps, by=stopped_by)
    logger.log(
        RESULT,
        f"stopped by {stopped_by} after step {progress.step:,} of {steps:,}, saved at step {policy.saved_at:,}; "
        f"the same command with --run_dir {run_dir} goes on",
    )


def evaluate_and_export(
    job: Job,
    world: World,
    engine: Engine,
    embeddings_before: Any,
    progress: Progress,
    steps_done: int,
    monitor: Monitor,
    started: float,
) -> None:
    """Evaluate and export the model, and record that the run has finished; then draw it. Collective; rank 0 writes.

    Args:
        embeddings_before: the token embeddings at this start, which must be the same now if they are frozen.
        progress: of the weights, which may be those of an earlier checkpoint.
        steps_done: the steps that the run has trained, and its newest checkpoint has.
        started: when this start began, by `time.perf_counter`.
    """
    measured = loop.heldout_loss(job, world, engine)
    state = engine.full_state()
    embeddings_change = all_or_none(lambda: embeddings_before.describe_change(state), world)
    logger.debug(embeddings_change)
    if monitor.log is None:
        return
    log, run_dir, seconds = monitor.log, job.run_dir, time.perf_counter() - started
    with explain_disk_errors(run_dir):
        if not log.series("heldout_loss")[0]:  # somebody has removed the log
            log.write(progress.step, **measured.records("heldout"))
        log.close()
        card = model_card(job, world, progress, monitor, measured, embeddings_change, seconds)
        folder = run_dir / model_folder.EXPORT
        model = build.build(job.config, job.recipe.seed)
        checksums = export(state, model, job.data.tokenizer, card, folder)
        steps = job.recipe.training.steps
        run_folder.set_state(run_dir, "finished", step=steps_done, steps=steps, export=checksums)
    shown = [str(folder), f"tensorboard --logdir {run_dir.parent}", f"scaler fill-mask {run_dir}"]
    with dispensable(f"{run_dir}: no picture of the loss"):
        shown.insert(0, str(log.draw(monitor.unigram_entropy)))
    where = compared(measured.loss, monitor.unigram_entropy)
    said = f"done in {duration(seconds)}: held-out loss {measured.loss:.3f}, {where}"
    logger.log(RESULT, "\n  ".join([said, *shown]))


def compared(loss: float, unigram_entropy: float) -> str:
    """Say how far a loss is from what a model without context would have.

    >>> compared(3.2, 3.66), compared(3.67, 3.66), compared(3.661, 3.66)
    ('0.46 nats below the unigram entropy', '0.01 nats above the unigram entropy', 'as much as the unigram entropy')
    """
    apart = f"{abs(loss - unigram_entropy):.2f}"
    if not float(apart):
        return "as much as the unigram entropy"
    return f"{apart} nats {'below' if loss < unigram_entropy else 'above'} the unigram entropy"


def model_card(
    job: Job,
    world: World,
    progress: Progress,
    monitor: Monitor,
    measured: HeldOut,
    embeddings_change: str,
    seconds: float,
) -> str:
    """Return the export's README: what it is, from which data and recipe, and what was measured."""
    assert monitor.log is not None
    manifest = job.data.manifest
    sources = ", ".join(str(source["source"]) for source in manifest.sources)
    _, losses = monitor.log.series("train_loss")
    longest = build.positions(job.config) or "no length"
    last_loss = f"{losses[-1]:.3f} nats" if losses else "not logged"
    return f"""---
library_name: transformers
pipeline_tag: fill-mask
tags: [masked-lm, deepspeed]
---
# {job.recipe.name}

A masked language model ({job.recipe.model["model_type"]}), pretrained from scratch.

```python
from transformers import pipeline

pipeline("fill-mask", model="PATH/TO/THIS/FOLDER")("The name of the {job.data.tokenizer.mask_token}.")
```

{saving.tried(job.config.model_type)}
Rows of training have {job.recipe.data.seq_len} tokens; the tokenizer cuts texts at {longest}.

## Data
{sources}: {manifest.count("train", "documents"):,} documents and {manifest.count("train", "tokens"):,} tokens \
for training, {manifest.count("heldout", "documents"):,} documents held out.

## Measured
| | |
|---|---|
| held-out loss | {measured.loss:.3f} nats over {measured.tokens:,} masked tokens |
| unigram entropy of the same tokens | {monitor.unigram_entropy:.3f} nats |
| held-out masked accuracy | {measured.masked_accuracy:.2%} |
| training loss, last logged | {last_loss} |
| optimizer steps | {progress.step:,} |
| token embeddings | {embeddings_change} |
| tokens seen or stepped over | {progress.consumed_rows * job.recipe.data.seq_len:,} |
| time | {duration(seconds)} on {quantity(world.size, "rank")}, since the last start |

The held-out loss is the mean cross-entropy of masked tokens in documents that training never saw, with fixed masks.
The unigram entropy is what a model without context would get on the same tokens.

## Recipe
Made with `deepspeed scaler/train.py --recipe recipe.yaml --deepspeed_config ds_config.json`.

```yaml
{job.recipe.to_yaml().rstrip()}
```
"""
