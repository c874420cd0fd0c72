"""Prepare data on a disk that is full for one stage after the other, in a mount namespace of its own.

python full_disk_worker.py RECIPE FOLDER

Run by test_full_disk.py. For each stage and for some room that is left for it: what is said,
which stages are there afterwards, and whether the same command, once there is room, makes the same data as elsewhere.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from data_prep.pipeline.workers import WorkerPool
from data_prep.prepared.prepare import prepare
from scaler.config.recipe import load
from scaler.core.errors import ScalerError

STAGES = ("corpus", "clean", "dedup", "tokenizer", "shards", "word2vec", "rows-32")
ROOM_KIB = (0, 8, 24, 56, 120)


def contents(data: Path) -> dict[str, bytes]:
    return {str(path.relative_to(data)): path.read_bytes() for path in data.rglob("*") if path.is_file()}


def mounted(disk: Path, size: str, option: str = "") -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"{option}size={size}", "none", disk], check=True)


def tried(
    recipe_file: str, folder: Path, disk: Path, whole: dict[str, bytes], number: int, room: int
) -> dict[str, object]:
    data = disk / "data"
    recipe = load(recipe_file, [f"data.folder={data}"])
    mounted(disk, "64m")
    for stage in STAGES[:number]:
        shutil.copytree(folder / "whole" / stage, data / stage)
    used = shutil.disk_usage(disk).used
    mounted(disk, str(max(4096, used + 1024 * room)), "remount,")  # 0 would be no limit
    said = ""
    try:
        prepare(recipe, WorkerPool(), threads=1)
    except ScalerError as error:
        said = str(error).replace(str(disk), "DISK")
    stages = sorted(path.name for path in data.iterdir() if not path.name.endswith(".partial")) if data.exists() else []
    mounted(disk, "64m", "remount,")
    prepare(recipe, WorkerPool(), threads=1)
    same = contents(data) == whole
    subprocess.run(["umount", disk], check=True)
    return {"stage": STAGES[number], "room": room, "said": said, "stages": stages, "same": same}


def main() -> None:
    recipe_file, folder = sys.argv[1], Path(sys.argv[2])
    disk = folder / "disk"
    disk.mkdir()
    prepare(load(recipe_file, [f"data.folder={folder / 'whole'}"]), WorkerPool(), threads=1)
    whole = contents(folder / "whole")
    found = [
        tried(recipe_file, folder, disk, whole, number, room) for number in range(len(STAGES)) for room in ROOM_KIB
    ]
    (folder / "figures.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
