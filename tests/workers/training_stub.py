"""A training that takes no time, for tests of what follows trainings: it keeps the contract of train.py's run folder.

Its held-out loss is how far the learning rate is from 1e-2, in powers of ten, and falls with each evaluation.
STUB_SECONDS: pause before each. A rate above STUB_BREAK ends it with an error, one above STUB_NAN makes its losses NaN.
"""

import argparse
import fcntl
import json
import math
import os
import sys
import time
from pathlib import Path

from scaler.config import recipe


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("run_dir", "recipe", "deepspeed_config", "ranks"):
        parser.add_argument(f"--{name}")
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    asked, run = recipe.load(given.recipe, given.overrides), Path(given.run_dir)
    with (run / ".lock").open("a") as lock, (run / "starts").open("a") as starts:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (run / "recipe.yaml").write_text(asked.to_yaml())
        (run / "checkpoints").mkdir(exist_ok=True)
        path, rate, every = run / "metrics.jsonl", asked.optimizer.learning_rate, asked.training.evaluate_every
        done = max((json.loads(line)["step"] for line in path.open()), default=0) if path.is_file() else 0
        starts.write(f"{done}\n")
        starts.flush()
        if rate > float(os.environ.get("STUB_BREAK", "inf")):
            print("error: the rate broke it\nsome library has the last word")
            sys.exit(2)
        for step in range(done + every, asked.training.steps + 1, every):
            time.sleep(float(os.environ.get("STUB_SECONDS", "0")))
            loss = abs(math.log10(rate) + 2) + every / step
            with path.open("a") as file:
                loss = math.nan if rate > float(os.environ.get("STUB_NAN", "inf")) else loss
                file.write(json.dumps({"step": step, "heldout_loss": loss}) + "\n")
            if (run / "STOP").exists():
                (run / "STOP").unlink()
                (run / "state.json").write_text(json.dumps({"state": "stopped", "step": step, "by": "a file STOP"}))
                return
        (run / "export").mkdir(exist_ok=True)
        for name in ("config.json", "tokenizer.json"):
            (run / "export" / name).write_text("{}")
        (run / "export" / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")  # without any weight
        (run / "state.json").write_text(json.dumps({"state": "finished"}))


main()
