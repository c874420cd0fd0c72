"""Sections of a recipe that describe the training: objective, optimizer, schedule, length, checkpoints, faults."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from scaler.config.typed import READ_FLOAT, BelowOne, Count, Fraction, NotNegative, Positive, settings

Shape = Literal["linear", "cosine", "constant", "sqrt"]
FromZero = Annotated[int, Field(ge=0)]
Probability = Annotated[float, Field(gt=0, lt=1), READ_FLOAT]


@settings("objective")
class Objective:
    """Masked language modelling: the fraction of a row's tokens that are masked (Devlin et al. 2019)."""

    mask_probability: Probability = 0.15
    """Fraction of a row's tokens that are masked in training."""
    final_mask_probability: Probability | None = None
    """Fraction at the end of training, reached linearly (Ankner et al. 2024); null: it stays."""
    heldout_mask_probability: Probability = 0.15
    """Fraction that is masked in evaluation; runs compare only where it is equal."""

    def at(self, done: float) -> float:
        """Return the fraction masked in training when the fraction `done` of the steps is done."""
        first, last = self.mask_probability, self.final_mask_probability
        return first if last is None else first + (last - first) * done


@settings("initialisation")
class Initialisation:
    """Weights at the start of training, in place of Transformers' random ones."""

    unigram_bias: bool = False
    """Set the decoder's bias to the log-frequency of each token."""
    neighbour_heads: tuple[int, ...] = ()
    """Offsets in tokens; one head of the first layer each starts by attending there. BERT and RoBERTa only."""
    word2vec: bool = False
    """Start the token embeddings from the vectors of the section `word2vec`."""


@settings("optimizer")
class Optimizer:
    """AdamW (Loshchilov and Hutter 2019) or SGD; biases and norms have no weight decay."""

    learning_rate: Positive
    """Peak learning rate."""
    name: Literal["adamw", "sgd"] = "adamw"
    """Optimizer."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.98)
    """AdamW's decay rates of the two moments (RoBERTa's: Liu et al. 2019)."""
    eps: Positive = 1e-6
    """AdamW's addend of the denominator (RoBERTa's)."""
    weight_decay: NotNegative = 0.01
    """Decoupled weight decay, multiplied by the learning rate."""
    momentum: BelowOne = 0.9
    """Momentum of SGD; 0: none, and no optimizer state."""
    embedding_rate: NotNegative = 1.0
    """Learning rate of the embeddings, as a multiple of learning_rate."""
    frozen_embeddings: bool = False
    """Leave the token embeddings as they are: no gradient, no optimizer state, no decay."""


@settings("schedule")
class Schedule:
    """Shape of the learning rate over the steps: linear warm-up, then decay."""

    warmup_share: Fraction
    """Length of the warm-up, as a fraction of all steps."""
    shape: Shape = "linear"
    """Shape of the decay; linear as RoBERTa, sqrt is 1 - sqrt(progress) (Hägele et al. 2024)."""
    floor: Fraction = 0.0
    """Learning rate at the end, as a fraction of the peak."""

    def learning_rate(self, step: int, steps: int, peak: float) -> float:
        """Return the learning rate of optimizer step `step`, counted from 0, of so many `steps`."""
        warmup = round(self.warmup_share * steps)
        if step < warmup:
            return peak * (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        falls = {
            "linear": 1.0 - progress,
            "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
            "sqrt": 1.0 - math.sqrt(progress),
            "constant": 1.0,
        }
        return peak * (self.floor + (1.0 - self.floor) * falls[self.shape])


@settings("training")
class Training:
    """Length of the training, and its batch. Micro-batch and accumulation are solved from `rows`."""

    steps: Count
    """Optimizer steps."""
    rows: Count
    """Global batch in rows, over all ranks and micro-batches."""
    max_micro_rows: Count = 64
    """Largest micro-batch in rows: what the memory of one rank takes at once."""
    log_every: Count = 50
    """Optimizer steps between two lines of the log."""
    evaluate_every: Count = 500
    """Optimizer steps between two evaluations on the held-out rows."""
    patience: Count | None = None
    """Evaluations without a lower held-out loss after which the run stops; null: it does not."""


@settings("checkpoint")
class Checkpoint:
    """Saving of the whole state of a run, and the checkpoints that stay beside the best one."""

    every: Count = 500
    """Optimizer steps between two checkpoints: the most that are lost when machines fail."""
    keep_last: Count = 2
    """Newest checkpoints that stay."""
    keep_every: Count | None = None
    """Optimizer steps whose multiples stay for ever; null: none."""
    asynchronous: bool = True
    """Train on while a checkpoint is written, at the cost of a copy of the state in the host's memory."""


@settings("faults")
class Faults:
    """Faults that a run bears before it goes back to a checkpoint, and before it stops."""

    skips: FromZero = 3
    """Batches in a row with a non-finite loss or gradient that are skipped; one more, and the run goes back."""
    rollbacks: FromZero = 2
    """Returns to a checkpoint without a new one in between, each one checkpoint further back; then the run stops."""
    spike_deviations: Positive | None = 10.0
    """Robust standard deviations above the median of the last losses that count as a spike; null: not watched."""
    spike_rollback: bool = False
    """Go back to a checkpoint from a spike, too."""
    failed_saves: Count = 3
    """Failed checkpoints in a row after which the run stops."""
    hang_seconds: Count = 600
    """Seconds without progress after which a rank ends the job."""
