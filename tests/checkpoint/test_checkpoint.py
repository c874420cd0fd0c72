"""The checkpoint's format: shards of parameters, cut and put together in any way; names, pointers, retention."""

import errno
import json
import os
from itertools import pairwise

import pytest
import torch

from scaler.checkpoint import folder as checkpoint_folder
from scaler.checkpoint import format as checkpoint_format
from scaler.checkpoint.format import WEIGHT, ParameterShard
from scaler.checkpoint.store import Checkpoints
from scaler.core.errors import ScalerError
from scaler.distributed.world import World
from scaler.training.progress import Progress

ALONE = World()
PROBE = {"input_ids": torch.arange(6).view(2, 3)}


def parameters(seed=0):
    chance = torch.Generator().manual_seed(seed)
    return {name: torch.randn(size, generator=chance) for name, size in (("a", 10), ("b.weight", 1), ("b.bias", 33))}


def shards(tensors, cuts=1):
    """Yield all parameters, each in `cuts` shards, with a second kind beside."""
    for name, tensor in tensors.items():
        bounds = [len(tensor) * number // cuts for number in range(cuts + 1)]
        for begin, end in pairwise(bounds):
            part = tensor[begin:end]
            yield ParameterShard(name, begin, len(tensor), {WEIGHT: part, "exp_avg": part * 2})


def saved(folder, tensors, step=1, **more):
    kept = Checkpoints(folder, ALONE, more.pop("keep_last", 9), more.pop("keep_every", None))
    more["progress"] = {"best_step": more.pop("best_step", None)}
    kept.begin(list(shards(tensors)), {"step": step, **more}, PROBE, asynchronous=step % 2 == 0)
    assert kept.commit() is None
    kept.close()
    return folder / f"step_{step:08d}"


def read_into(target, path):
    checkpoint_format.fill(target, path, checkpoint_folder.read_manifest(path))


@pytest.fixture
def kept(tmp_path):
    """The checkpoints of a folder, of which all stay."""
    kept = Checkpoints(tmp_path, ALONE, 9, None)
    yield kept
    kept.close()


def test_a_checkpoint_can_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o027)
    try:
        path = saved(tmp_path, parameters(), step=2)  # written by the thread
    finally:
        os.umask(before)
    modes = {file.name: oct(file.stat().st_mode & 0o777) for file in path.iterdir()}
    assert modes == dict.fromkeys(("manifest.json", "probe.safetensors", "rank_00000.safetensors"), "0o640")


@pytest.mark.parametrize("cuts", [2, 3, 7])
def test_the_fingerprint_does_not_depend_on_how_parameters_are_cut(cuts):
    assert checkpoint_format.fingerprint(shards(parameters(), cuts)) == checkpoint_format.fingerprint(
        shards(parameters())
    )


@pytest.mark.parametrize("size", [2, 3, 8])
def test_fingerprints_of_ranks_shares_add_up(size):
    whole = [
        ParameterShard(name, 0, len(tensor), {WEIGHT: tensor}, everywhere=True) for name, tensor in parameters().items()
    ]
    shares = [checkpoint_format.fingerprint(shard.part_for(rank, size) for shard in whole) for rank in range(size)]
    assert sum(share[WEIGHT] for share in shares) % 2**64 == checkpoint_format.fingerprint(whole)[WEIGHT]


@pytest.mark.parametrize("change", ["bit", "swap", "name", "zero more"])
def test_the_fingerprint_sees(change):
    tensors = parameters()
    before = checkpoint_format.fingerprint(shards(tensors))
    if change == "bit":
        tensors["b.bias"].view(torch.int32)[5] ^= 1
    elif change == "swap":
        tensors["a"][[2, 3]] = tensors["a"][[3, 2]]
    elif change == "name":
        tensors["c"] = tensors.pop("a")
    else:
        tensors["b.weight"] = torch.cat([tensors["b.weight"], torch.zeros(1)])
    assert checkpoint_format.fingerprint(shards(tensors)) != before


@pytest.mark.parametrize("cuts", [1, 2, 5])
def test_what_was_saved_is_read_into_stretches_cut_in_another_way(tmp_path, cuts):
    path = saved(tmp_path, parameters())
    found = parameters(seed=1)
    target = [
        ParameterShard(shard.name, shard.start, shard.size, {WEIGHT: shard.tensors[WEIGHT]})
        for shard in shards(found, cuts)
    ]
    read_into(target, path)
    assert all(torch.equal(found[name], tensor) for name, tensor in parameters().items())


def test_a_parameter_of_another_size_is_refused_with_its_name(tmp_path):
    path = saved(tmp_path, parameters())
    tensors = {**parameters(), "a": torch.zeros(11)}
    with pytest.raises(ScalerError, match="a has 10 elements there and 11 in this model; it is another model's"):
        read_into(shards(tensors), path)


def test_a_kind_of_state_that_is_in_no_file_is_refused(tmp_path):
    path = saved(tmp_path, parameters())
    target = [ParameterShard("a", 0, 10, {"exp_avg_sq": torch.zeros(10)})]
    with pytest.raises(ScalerError, match="10 elements of exp_avg_sq of a are in none of its files"):
        read_into(target, path)


def test_tensors_may_change_as_soon_as_an_asynchronous_save_has_begun(tmp_path, kept):
    tensors = parameters()
    kept.begin(list(shards(tensors)), {"step": 2}, PROBE, asynchronous=True)
    for tensor in tensors.values():
        tensor.zero_()
    assert kept.commit() is None
    found = parameters(seed=1)
    read_into(shards(found), tmp_path / "step_00000002")
    assert torch.equal(found["a"], parameters()["a"])


def test_pointers_and_retention(tmp_path):
    for step in range(1, 10):
        saved(tmp_path, parameters(), step, keep_last=2, keep_every=4, best_step=3 if step >= 3 else None)
    assert [checkpoint_folder.step_of(path) for path in checkpoint_folder.found(tmp_path)] == [9, 8, 4, 3]
    assert (tmp_path / "latest").resolve().name == "step_00000009"
    assert (tmp_path / "best").resolve().name == "step_00000003"


def test_what_is_damaged_takes_no_place_of_those_that_are_kept(tmp_path, caplog):
    for step in (5, 6, 9):
        saved(tmp_path, parameters(), step)
    (tmp_path / "step_00000009" / "rank_00000.safetensors").unlink()
    kept = Checkpoints(tmp_path, ALONE, 1, None)
    assert kept.newest() == tmp_path / "step_00000006" and "rank_00000.safetensors: missing" in caplog.messages[0]
    kept.on_first_rank(kept.folder.set_aside_after, 6)
    kept.on_first_rank(kept.folder.set_aside_after, 6)
    kept.begin(list(shards(parameters())), {"step": 7}, PROBE, asynchronous=False)
    assert kept.commit() is None
    kept.close()
    assert [checkpoint_folder.step_of(path) for path in checkpoint_folder.found(tmp_path)] == [7]
    assert (tmp_path / "step_00000009.damaged" / "manifest.json").is_file()


def test_going_back_points_to_where_it_went(tmp_path, kept):
    for step in (1, 2, 3):
        saved(tmp_path, parameters(), step, best_step=min(step, 2))
    kept.on_first_rank(kept.folder.forget_after, 1)
    assert [(tmp_path / name).resolve().name for name in ("latest", "best")] == ["step_00000001"] * 2


def test_a_disk_without_symbolic_links_has_checkpoints_without_pointers(tmp_path, kept, monkeypatch, caplog):
    def refuse(self, target):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(self))

    monkeypatch.setattr(type(tmp_path), "symlink_to", refuse)
    kept.begin(list(shards(parameters())), {"step": 1}, PROBE, asynchronous=False)
    assert kept.commit() is None and kept.newest() == tmp_path / "step_00000001"
    assert len(caplog.messages) == 1 and "the checkpoint of step 1 is saved" in caplog.messages[0]


def test_a_checkpoint_that_lacks_elements_is_none(tmp_path, kept):
    whole = [*list(shards(parameters()))[:-1], ParameterShard("b.bias", 0, 33, {WEIGHT: torch.empty(0)})]
    kept.begin(whole, {"step": 1}, PROBE, asynchronous=False)
    assert "0 of the 33 elements of b.bias were written" in str(kept.commit())
    assert checkpoint_folder.found(tmp_path) == []


def test_a_manifest_with_another_digit_is_damaged(tmp_path):
    path = saved(tmp_path, parameters(), consumed_rows=120)
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace("120", "180"))
    with pytest.raises(ScalerError, match="its checksum is another"):
        checkpoint_folder.read_manifest(path)


def test_half_written_ones_are_no_checkpoints_and_go(tmp_path, kept):
    saved(tmp_path, parameters())
    for name in ("step_00000002.partial", "step_00000003.removed.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rank_00000.safetensors").write_bytes(b"half")
    (tmp_path / "notes.partial").mkdir()  # the user's
    (tmp_path / "step_00000004.partial").symlink_to(tmp_path / "notes.partial")
    kept.on_first_rank(kept.folder.clear_partial)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "notes.partial", "step_00000001"]
    assert kept.newest() == tmp_path / "step_00000001"


def test_the_newest_but_so_many(tmp_path, kept):
    for step in (1, 2, 3):
        saved(tmp_path, parameters(), step)
    assert [checkpoint_folder.step_of(kept.newest(skip)) for skip in (0, 1, 2, 3)] == [3, 2, 1, 1]
    assert Checkpoints(tmp_path / "none", ALONE, 9, None).newest() is None


def test_a_manifest_of_another_format_is_refused(tmp_path):
    path = saved(tmp_path, parameters())
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(ScalerError, match="is a checkpoint of format 99; a checkpoint of format 2 is needed"):
        checkpoint_folder.read_manifest(path)


def test_a_file_that_its_rank_wrote_elsewhere_is_named(tmp_path, kept, monkeypatch):
    write = checkpoint_format.write_file
    monkeypatch.setattr(
        checkpoint_format, "write_file", lambda path, content: {**write(path, content), "name": "rank_9"}
    )
    kept.begin(list(shards(parameters())), {"step": 1}, PROBE, asynchronous=False)
    assert "the run folder must be on a disk that all nodes share" in str(kept.commit())
    assert list(tmp_path.iterdir()) == []


def test_progress_notes_the_best_evaluation_and_how_long_ago_it_was():
    progress = Progress()
    for step, loss in enumerate((float("nan"), 2.0, 2.5, 2.0)):
        progress.step = step
        progress.judge_evaluation(loss)
    assert (progress.best_step, progress.best_loss, progress.evaluations_since_best) == (1, 2.0, 2)
    assert progress.out_of_patience(2) and not progress.out_of_patience(3) and not progress.out_of_patience(None)
