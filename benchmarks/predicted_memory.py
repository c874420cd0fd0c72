"""Predicted against measured memory of a rank, on CPUs: `python benchmarks/predicted_memory.py [--sizes small,large]`.

RoBERTas of three sizes train some steps of two micro-batches at each ZeRO stage, with and without offload, on
1, 2 and 4 ranks of this machine. Measured is the resident memory at the peak of a step, of the rank that takes most,
beyond that of the same process after it has trained a tiny model in the same way, for Python, libraries and gloo.
glibc is told to give back what is freed (MALLOC_MMAP_THRESHOLD_), as an allocator of a GPU keeps count of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from scaler.config.batch import SolvedBatch
from scaler.config.training_sections import Optimizer
from scaler.data.batches import Batch
from scaler.data.tokenizer import Vocabulary
from scaler.distributed import collectives
from scaler.distributed.world import detect_world
from scaler.engine import engine, process_group
from scaler.model import build, masked_lm, parameters
from scaler.planning import memory, workload

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))
from ranks import ended, forked_calls

SIZES = {"small": (2, 256, 8_192), "middle": (4, 384, 16_000), "large": (6, 768, 50_265)}  # layers, width, entries
TINY = (1, 64, 512)
OFFLOADED = {"no": (), "optimizer": ("optimizer",), "all": ("optimizer", "param")}  # to the host
STAGES = (
    *((0, "no"), (1, "no"), (2, "no"), (3, "no")),
    *((1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "all")),
)
RANKS = (1, 2, 4)
ROWS, ACCUMULATION, SEQ_LEN, MASKED, BUCKET = 4, 2, 128, 19, 50_000_000
THRESHOLD = "MALLOC_MMAP_THRESHOLD_"


def configuration(size: tuple[int, int, int]) -> Any:
    """Of a RoBERTa."""
    layers, width, entries = size
    special = Vocabulary(size=entries, begin_id=2, end_id=3, pad_id=0, mask_id=4, special_ids=(0, 1, 2, 3, 4))
    asked = {
        **{"model_type": "roberta", "num_hidden_layers": layers, "hidden_size": width, "type_vocab_size": 1},
        **{"num_attention_heads": width // 64, "intermediate_size": 4 * width, "max_position_embeddings": SEQ_LEN + 8},
        **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    }
    return build.configuration(asked, special, entries, SEQ_LEN)


def ds_config(stage: int, offload: str, ranks: int) -> dict[str, Any]:
    """DeepSpeed's."""
    zero: dict[str, Any] = {"stage": stage, "reduce_bucket_size": BUCKET, "overlap_comm": False}
    zero |= {f"offload_{what}": {"device": "cpu"} for what in OFFLOADED[offload]}
    return {
        "train_batch_size": ROWS * ACCUMULATION * ranks,
        "train_micro_batch_size_per_gpu": ROWS,
        "gradient_accumulation_steps": ACCUMULATION,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": False},
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
    }


def peak(size: tuple[int, int, int], asked: dict[str, Any]) -> int:
    """Resident bytes at the peak of the last of three steps."""
    config = configuration(size)
    running = engine.Engine(masked_lm.MaskedLM(build.build(config, 0)), Optimizer(learning_rate=1e-4), asked)
    running.train(True)
    for _ in range(3):
        Path("/proc/self/clear_refs").write_text("5")
        for _ in range(ACCUMULATION):
            tokens = torch.randint(5, config.vocab_size, (ROWS, SEQ_LEN))
            places = torch.arange(SEQ_LEN).expand(ROWS, -1).contiguous()
            hidden = torch.arange(MASKED).expand(ROWS, -1).contiguous()
            loss, _ = running(Batch(tokens, places, torch.ones_like(tokens), hidden, tokens[:, :MASKED].contiguous()))
            running.backward(loss)
            running.step(1e-4)
    found = _status("VmHWM")
    running.close()
    return found


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def one(size: tuple[int, int, int], stage: int, offload: str, file: Path) -> None:
    """On one rank: the tiny model, then the one that is measured; the first rank writes the most that any took."""
    world = detect_world()
    process_group.join(world)
    asked = ds_config(stage, offload, world.size)
    peak(TINY, asked)
    gc.collect()
    before = _status("VmRSS")
    taken = max(collectives.all_gather(peak(size, asked) - before, world))
    if world.is_first:
        file.write_text(json.dumps(taken))
    process_group.leave()


def predicted(size: tuple[int, int, int], stage: int, offload: str, ranks: int) -> memory.Footprint:
    """What the plan says."""
    config = configuration(size)
    with torch.device("meta"):
        empty = build.build(config, 0)
    groups = parameters.parameter_groups(empty, 0.01)
    layout = memory.Layout(tuple(tuple(p.numel() for p in group["params"]) for group in groups))
    asked = memory.Sharding.from_ds_config(ds_config(stage, offload, ranks), "fp32")
    batch = SolvedBatch(ROWS * ACCUMULATION * ranks, ROWS, ACCUMULATION, ranks)
    sharding = dataclasses.replace(asked, on_cpu=True).of_batch(batch, 2)
    taken = workload.activations(config, ROWS, SEQ_LEN, MASKED, 4, on_cpu=True)
    return memory.memory_of_step(layout, taken, sharding)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--ranks", default=",".join(map(str, RANKS)))
    parser.add_argument("--stages", default="0,1,2,3")
    arguments = parser.parse_args()
    if THRESHOLD not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, THRESHOLD: "65536"})
    errors = []
    print("size    ranks  ZeRO   offload  predicted MB  measured MB   error")
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.sizes.split(","):
            for ranks in map(int, arguments.ranks.split(",")):
                for stage, offload in STAGES:
                    if str(stage) not in arguments.stages.split(","):
                        continue
                    file = Path(folder) / f"{name}-{ranks}-{stage}-{offload}"
                    statuses = ended(forked_calls(ranks, one, SIZES[name], stage, offload, file), 600)
                    if any(statuses):
                        raise SystemExit(f"{name}, {ranks} ranks, stage {stage}, offload {offload}: status {statuses}")
                    found = json.loads(file.read_text())
                    told = predicted(SIZES[name], stage, offload, ranks).peak
                    errors.append(told / found - 1)
                    print(
                        f"{name:<7} {ranks:>5} {stage:>5} {offload:>9} {told / 1e6:>13,.1f}"
                        f" {found / 1e6:>12,.1f} {errors[-1]:>+7.1%}",
                        flush=True,
                    )
    print(f"worst {max(errors, key=abs):+.1%}; {sum(abs(e) <= 0.1 for e in errors)} of {len(errors)} within 10 %")


if __name__ == "__main__":
    main()
