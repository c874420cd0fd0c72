"""Fine-tune with one learning rate and one seed by Transformers' Trainer: early stop, best weights restored, scores."""

from __future__ import annotations

import logging
import os
import shutil
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.integrations import TensorBoardCallback

from scaler.config import deepspeed as ds_config
from scaler.core.board import Board
from scaler.core.errors import ScalerError
from scaler.distributed.world import World
from scaler.finetuning import encoder, scores
from scaler.finetuning.examples import TOKENS
from scaler.finetuning.features import Encoded
from scaler.finetuning.folder import record_file
from scaler.finetuning.splits import TEST, TRAIN, VALIDATION, Splits
from scaler.model import embeddings

# the Trainer imports DeepSpeed where it is installed, which otherwise logs that it has looked for a GPU
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
WARMUP_FRACTION, WEIGHT_DECAY = 0.1, 0.01  # Devlin et al. 2019, appendix A.2, with the warm-up of their code
EVALUATION_ROWS = 64  # per rank and forward pass


@dataclass(frozen=True)
class Settings:
    """The settings that all runs of a fine-tuning share."""

    source: str
    task: str
    epochs: int
    batch_size: int  # of all ranks together
    patience: int
    precision: str
    freeze_embeddings: bool
    from_scratch: bool
    deepspeed_config: str | None


def check(settings: Settings, world: World) -> None:
    """Raises ScalerError for settings that cannot be trained with."""
    if settings.batch_size % world.size or settings.batch_size < world.size:
        raise ScalerError(f"--batch_size {settings.batch_size} cannot be shared equally by {world.size} ranks")
    if settings.deepspeed_config is not None:
        path = Path(settings.deepspeed_config)
        if ds_config.read(path).get("zero_optimization", {}).get("stage") == 3:
            rule = "shards the weights, and fine-tuning needs them whole; use 2"
            raise ScalerError(f"{path}: zero_optimization.stage=3 {rule}")


class _Progress(TrainerCallback):
    """A callback that prints a line for each epoch."""

    def __init__(self, name: str, chosen_by: str, epochs: int) -> None:
        self.name, self.chosen_by, self.epochs = name, chosen_by, epochs
        self.loss, self.start = float("nan"), time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **more: Any) -> None:
        """Keep the training loss, which is logged before the evaluation."""
        self.loss = (logs or {}).get("loss", self.loss)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **more: Any) -> None:
        """Print the epoch's loss and validation score."""
        if state.is_world_process_zero and "eval_loss" in metrics:
            print(
                f"{self.name}  epoch {state.epoch:.0f}/{self.epochs}: loss {self.loss:.4f}, validation "
                f"{self.chosen_by} {metrics[f'eval_{self.chosen_by}']:.4f}  {time.perf_counter() - self.start:.0f} s",
                flush=True,
            )


def run(
    settings: Settings,
    learning_rate: float,
    seed: int,
    splits: Splits,
    encoded: dict[str, Encoded],
    tokenizer: Any,
    out: Path,
) -> tuple[dict[str, Any], PreTrainedModel, list[tuple[str, ...]]]:
    """Fine-tune once. Every rank calls it, and all return the same scores.

    Args:
        out: folder of the fine-tuning, for TensorBoard's scalars, and while it trains for the Trainer's files.

    Returns: the record (learning rate, seed, scores on validation and test, and the curve, as JSON), the model, and the
        predicted labels of each test example.
    """
    work, board = out / "work", out / "tensorboard" / record_file(out, learning_rate, seed).stem
    task, labels = settings.task, splits.labels
    start = time.perf_counter()
    model = encoder.load(settings.source, task, labels, seed, settings.from_scratch)
    if settings.freeze_embeddings:
        embeddings.freeze(model)
    chosen_by = scores.chosen_by(task)
    split = VALIDATION

    def measure(prediction: Any) -> dict[str, float]:
        labelled = scores.predicted(_array(prediction.predictions), encoded[split], labels, task)
        return scores.score(splits.examples[split], labelled, labels, task)

    arguments = _arguments(settings, learning_rate, seed, work, chosen_by)
    if arguments.process_index == 0:
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(board, ignore_errors=True)
    collator = DataCollatorForTokenClassification if task == TOKENS else DataCollatorWithPadding
    name = f"learning rate {learning_rate:g}, seed {seed}"
    callbacks = [_Progress(name, chosen_by, settings.epochs), EarlyStoppingCallback(settings.patience)]
    if arguments.process_index == 0:
        callbacks.append(TensorBoardCallback(Board(board)))
    trainer = Trainer(
        model=model,
        args=arguments,
        data_collator=collator(tokenizer),
        train_dataset=encoded[TRAIN].rows,
        eval_dataset=encoded[VALIDATION].rows,
        compute_metrics=measure,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*pin_memory.*")
        trainer.train()  # ends with the best epoch's weights
        history = _history(trainer.state.log_history, chosen_by)
        measured, predicted = {}, []
        for split in (VALIDATION, TEST):
            logits = _array(trainer.predict(encoded[split].rows).predictions)
            predicted = scores.predicted(logits, encoded[split], labels, task)
            measured[split] = scores.score(splits.examples[split], predicted, labels, task)
    if arguments.process_index == 0:
        shutil.rmtree(work, ignore_errors=True)
    record = {
        "learning_rate": learning_rate,
        "seed": seed,
        **measured,
        "epochs": len(history),
        "best_epoch": max(range(len(history)), key=lambda number: history[number][chosen_by]) + 1,
        "seconds": round(time.perf_counter() - start, 1),
        "history": history,
    }
    return record, trainer.accelerator.unwrap_model(trainer.model), predicted


def _array(predictions: Any) -> np.ndarray[Any, Any]:
    """Return the logits; models with several outputs have them first."""
    return np.asarray(predictions[0] if isinstance(predictions, tuple) else predictions)


def _arguments(settings: Settings, learning_rate: float, seed: int, work: Path, chosen_by: str) -> TrainingArguments:
    gpu = torch.cuda.is_available()
    ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    deepspeed_on_cpu = not gpu and settings.deepspeed_config is not None
    if deepspeed_on_cpu:
        _configure_accelerate()
    return TrainingArguments(
        output_dir=str(work),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size // ranks,
        per_device_eval_batch_size=EVALUATION_ROWS,
        learning_rate=learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=WARMUP_FRACTION,
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=1.0,
        # True would multiply the loss of these models, which is a mean, and its gradients by the number of ranks
        average_tokens_across_devices=False,
        seed=seed,
        bf16=settings.precision == "bf16",
        eval_strategy="epoch",
        logging_strategy="epoch",
        logging_nan_inf_filter=False,  # shows a loss that is not a number
        save_strategy="best",
        save_total_limit=1,
        # the Trainer restores DeepSpeed's checkpoints only when they are whole
        save_only_model=settings.deepspeed_config is None,
        load_best_model_at_end=True,
        metric_for_best_model=chosen_by,
        greater_is_better=True,
        use_cpu=not gpu and settings.deepspeed_config is None,
        ddp_backend=None if ranks == 1 else "nccl" if gpu else "gloo",
        dataloader_pin_memory=gpu,
        deepspeed=settings.deepspeed_config,
        accelerator_config={"use_configured_state": True} if deepspeed_on_cpu else None,
        disable_tqdm=True,
        report_to="none",
    )


def _configure_accelerate() -> None:
    """Set accelerate's state for DeepSpeed on CPUs; without a backend there, each rank would believe to be alone."""
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    PartialState(backend="gloo")
    del os.environ["ACCELERATE_USE_DEEPSPEED"]


def _history(log: Sequence[dict[str, Any]], chosen_by: str) -> list[dict[str, Any]]:
    """Return loss and validation score of each epoch, from the Trainer's log."""
    epochs: dict[int, dict[str, Any]] = {}
    names = {"loss": "train_loss", "eval_loss": "validation_loss", f"eval_{chosen_by}": chosen_by}
    for entry in log:
        epoch = epochs.setdefault(round(entry["epoch"]), {"epoch": round(entry["epoch"])})
        # null where it is not finite, because JSON has no such number
        epoch |= {name: entry[key] if np.isfinite(entry[key]) else None for key, name in names.items() if key in entry}
    return [epochs[epoch] for epoch in sorted(epochs) if chosen_by in epochs[epoch]]
