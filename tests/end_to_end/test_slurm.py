"""The job scripts on a real SLURM of four virtual nodes: from submission through failure to the end; refusals."""

import itertools
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from conftest import ROOT, network_of, opened
from limits import wait_until
from on_disk import attempts
from slurm_cluster import PARTITIONS, Cluster, missing

from scaler.checkpoint.folder import found, read_manifest
from scaler.config.recipe import load
from scaler.core import folders
from scaler.data import batches, tokenizer
from scaler.finetuning import folder as finetune_folder
from scaler.studies import folder as study_folder

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
SCRIPTS = [name for name in sorted(os.listdir(ROOT / "slurm")) if name not in ("env.sh", "job.sh")]
LONG = ["training.steps=30000", "training.log_every=20", "training.evaluate_every=30000", "checkpoint.every=10"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(Path(f"/tmp/scaler-slurm-{os.getpid()}")) as running:
        yield running


class Site:
    """A project folder on a cluster, with an env.sh of its own."""

    def __init__(self, folder: Path, cluster: Cluster, recipe: Path) -> None:
        self.folder, self.cluster, self.recipe = folder, cluster, recipe
        self.environ = {"VENV": sys.prefix, "RANKS_PER_NODE": "1", "PREPARE_RANKS_PER_NODE": "2"}
        self.environ |= {"RUN_EVALUATION": "no", "RUN_PREFLIGHT": "no", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        for name in ("scaler", "data_prep", "ds_configs"):
            (folder / name).symlink_to(ROOT / name)
        shutil.copytree(ROOT / "slurm", folder / "slurm")

    def submit(self, *arguments: object, **environ: str) -> str:
        """The number of a new job."""
        done = self.cluster.submit(*arguments, cwd=self.folder, **{**self.environ, **environ})
        assert done.returncode == 0, done.stderr
        return done.stdout.split()[-1]

    def words(self, number: str) -> str:
        """What a job's script has said."""
        return "".join(path.read_text() for path in sorted(self.folder.glob(f"*-{number}*.out")))

    def over(self, number: str, *states: str, **limits: float) -> str:
        """Wait for a job's end; what its script said."""
        ended = self.cluster.wait(number, *ENDS, **limits)
        assert ended["JobState"] in states, f"{ended['JobState']}: {self.words(number)}"
        return self.words(number)

    def trains(self, run: str, start: int = 1, seconds: float = 400) -> None:
        """Wait until a run has saved a step after so many starts."""
        wait_until(lambda: len(self.starts(run)) >= start, seconds=seconds)
        before = self.latest(run)
        wait_until(lambda: self.latest(run) != before, seconds=seconds)

    def latest(self, run: str) -> str:
        """Name of the newest checkpoint, or empty."""
        latest = self.folder / run / "checkpoints" / "latest"
        return os.readlink(latest) if latest.is_symlink() else ""

    def starts(self, run: str) -> list[dict]:
        """What is written of each start of a run."""
        return attempts(self.folder / run) if (self.folder / run / "environment.json").is_file() else []

    def set(self, *lines: str) -> None:
        """Add lines to its env.sh."""
        with (self.folder / "slurm" / "env.sh").open("a") as file:
            file.write("\n".join(lines) + "\n")


ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@pytest.fixture
def site(tmp_path, cluster, tiny_recipe_file):
    made = Site(tmp_path, cluster, tiny_recipe_file)
    yield made
    cluster.control("scancel", "--user", "root")
    wait_until(lambda: not cluster.control("squeue", "-h"), seconds=60)


def test_from_text_to_an_evaluated_model_on_two_nodes(site):
    recipe = site.recipe.read_text()
    recipe = re.sub(r"folder: [^,}]*", f"folder: {site.folder}/data", recipe)
    (site.folder / "mine.yaml").write_text(recipe)
    site.set("PREFLIGHT_OPTIONS=(--slowest_share 0.01)")  # the nodes share two cores with other tests, unequally
    said = site.over(site.submit("slurm/prepare_data.sh", "--recipe", "mine.yaml"), "COMPLETED")
    assert (site.folder / "data" / "rows-32" / "manifest.json").is_file(), said

    number = site.submit("slurm/pretrain.sh", "--recipe", "mine.yaml", RUN_PREFLIGHT="yes", RUN_EVALUATION="yes")
    said = site.over(number, "COMPLETED")
    run = site.folder / "runs" / f"pretrain-{number}"
    assert "preflight: 2 ranks on 2 nodes: all is well" in said and "2 ranks, ZeRO-2" in said and "done in" in said
    assert (run / "export" / "model.safetensors").is_file()
    logs = sorted(path.name for path in (run / "logs" / f"job-{number}-start-0").iterdir())
    assert logs == ["node1-rank0.txt", "node2-rank1.txt", "preflight.txt", "srun.txt"], said
    (start,) = site.starts(f"runs/pretrain-{number}")
    assert start["hosts"] == {"node1": 1, "node2": 1} and start["slurm"] == {"id": number, "name": "pretrain"}

    evaluation = re.findall(r"Submitted batch job (\d+)", said)[0]
    site.over(evaluation, "COMPLETED")
    assert (run / "evaluation_test.json").is_file()

    again = site.over(site.submit("slurm/pretrain.sh", "--run_dir", run), "COMPLETED")
    assert "this run is finished" in again


def test_a_job_lives_through_warning_requeue_preemption_and_power_cut(site, cluster, run_command):
    job = ("slurm/pretrain.sh", "--recipe", site.recipe, *LONG, "training.rows=9")
    number = site.submit("-p", "three", "-N", "1-3", *job)
    run = f"runs/pretrain-{number}"
    site.trains(run)

    # ---- a second job on the same folder is refused, and the first one named
    other = site.submit("-N1", "-w", "node4", "slurm/pretrain.sh", "--run_dir", run)
    assert f"another run is at work in it (job {number}, " in site.over(other, "FAILED")

    # ---- the warning before the time limit: save, requeue, go on
    cluster.control("scancel", "--signal=USR1", "--batch", number)
    cluster.wait(number, "RUNNING", restarts=1)
    site.trains(run, 2)
    assert "stopped by SIGUSR1" in site.words(number)

    cluster.control("scontrol", "requeue", number)
    cluster.wait(number, "RUNNING", restarts=2)
    site.trains(run, 3)

    # ---- preemption by a job of a higher partition, which leaves the ranks fifteen seconds
    urgent = site.submit("-p", "urgent", "-w", "node1", "--exclusive", "--wrap", "sleep 3")
    cluster.wait(urgent, "COMPLETED")
    cluster.wait(number, "RUNNING", restarts=3)
    site.trains(run, 4)

    # ---- a power cut of one of its three nodes: two ranks cannot share nine rows, so it goes on with one
    cluster.cut_power("node2")
    cluster.wait(number, "RUNNING", restarts=4)
    site.trains(run, 5)
    cluster.start_node("node2")
    (site.folder / run / "STOP").touch()
    said = site.over(number, "COMPLETED")
    assert "stopped by a file STOP" in said and "only 1 of 2 nodes are used, to share the batch equally" in said

    assert [start["ranks"] for start in site.starts(run)] == [3, 3, 3, 3, 1]
    logs = sorted(path.name for path in (site.folder / run / "logs").glob("job-*"))
    assert logs == [*(f"job-{number}-start-{start}" for start in range(5)), f"job-{other}-start-0"]
    for start in (1, 2):  # requeue and preemption left the ranks their time
        words = (site.folder / run / "logs" / f"job-{number}-start-{start}" / "node1-rank0.txt").read_text()
        assert "stopped by SIGTERM after step" in words
    progress = read_manifest(found(site.folder / run / "checkpoints")[0])["progress"]
    assert progress["consumed_rows"] == 9 * progress["step"]
    assert progress["digest"] == digest(load(str(site.recipe)), progress["consumed_rows"], 9)

    status = run_command(sys.executable, "-m", "scaler.status", site.folder / run, cwd=ROOT, status=0)
    assert f"stopped (a file STOP)\n  step     {progress['step']:,} of 30,000" in status.stdout
    assert f"5; the last one: 1 rank on node1 (1), SLURM job {number}" in status.stdout


def digest(recipe, rows: int, batch: int) -> int:
    """Of all rows and masks that a run of so many rows trains on, whatever happens to it."""
    _, reader = opened(recipe, "train")
    return sum(batches.digest(reader.at(row, batch), row) for row in range(0, rows, batch)) % (1 << 64)


@pytest.mark.slow
def test_a_node_that_does_not_see_the_data_is_named_and_left_out(site, cluster):
    data = str(load(str(site.recipe)).data.folder)
    cluster.change("node2", "mount", "-t", "tmpfs", "none", data)
    try:
        number = site.submit("slurm/pretrain.sh", "--recipe", site.recipe, RUN_PREFLIGHT="yes")
        said = site.over(number, "COMPLETED")
    finally:
        cluster.change("node2", "umount", data)
    assert "node2: settings: " in said and "requeued: the run goes on from its last checkpoint, without node2" in said
    assert cluster.job(number)["ExcNodeList"] == "node2"
    (start,) = site.starts(f"runs/pretrain-{number}")
    assert len(start["hosts"]) == 2 and "node2" not in start["hosts"]


@pytest.mark.slow
def test_a_node_with_a_slow_link_is_named(site, cluster):
    shaping = ["root", "tbf", "rate", "200mbit", "burst", "32kbit", "latency", "50ms"]
    cluster.change("node3", "tc", "qdisc", "add", "dev", "eth0", *shaping)
    try:
        done = cluster.run(
            *("srun", "-N3", "--ntasks-per-node=1", sys.executable, "-m", "scaler.preflight", "--recipe", site.recipe),
            *("--run_dir", "runs/slow", "--ranks", "3", "--slowest_share", "0.2"),
            cwd=site.folder,
            **site.environ,
        )
    finally:
        cluster.change("node3", "tc", "qdisc", "del", "dev", "eth0", "root")
    assert done.returncode == 75, done.stdout + done.stderr
    assert re.search(r"^node3 .* bad$", done.stdout, re.MULTILINE)
    assert re.search(r"^node3: links to other nodes: \d+% of the median of all$", done.stdout, re.MULTILINE)
    assert "bad nodes: node3; start again without them" in done.stderr
    assert [path.read_text() for path in site.folder.glob("runs/slow/preflight/*/bad_nodes")] == ["node3\n"]


@pytest.mark.slow
def test_a_rank_that_never_comes_is_named_and_its_node_left_out(site, cluster):
    # before any of our code runs on it
    hangs = '[ $SLURMD_NODENAME = node2 ] && [ ${SLURM_RESTART_COUNT:-0} = 0 ] && sleep 600; exec "$@"'
    site.set(f"INSIDE=(env PATH=$PATH:$VENV/bin bash -c '{hangs}' --)", "PREFLIGHT_OPTIONS=(--seconds 20)")
    number = site.submit("slurm/pretrain.sh", "--recipe", site.recipe, RUN_PREFLIGHT="yes")
    cluster.wait(number, "RUNNING", restarts=1)
    said = site.over(number, "COMPLETED")
    assert "node2: rank 1 was not heard of" in said and cluster.job(number)["ExcNodeList"] == "node2"


def test_a_wrong_network_interface_fails_soon_with_its_name(site):
    number = site.submit("slurm/pretrain.sh", "--recipe", site.recipe, RUN_PREFLIGHT="yes", GLOO_SOCKET_IFNAME="ib7")
    said = site.over(number, "FAILED")
    assert re.search(r"error: preflight: network: .*ib7.* \(on all nodes, so it is a setting\)", said)


@pytest.mark.parametrize("preflight", ["yes", "no"])
def test_a_full_shared_disk_ends_the_job_with_one_line(site, cluster, preflight):
    shared = site.folder / "runs"
    shared.mkdir()
    for name in cluster.nodes[:2]:
        cluster.change(name, "mount", "-t", "tmpfs", "-o", "size=200k", f"scaler-{name}", str(shared))
    try:
        job = ("-N1", "-w", "node1", "slurm/pretrain.sh", "--recipe", site.recipe)
        said = site.over(site.submit(*job, RUN_PREFLIGHT=preflight), "FAILED")
    finally:
        for name in cluster.nodes[:2]:
            cluster.change(name, "umount", "--lazy", str(shared))  # what the job left may still have a file open
    assert len([line for line in said.splitlines() if line.startswith("error: ")]) == 1
    assert "the disk is full" in said or "No space left on device" in said


@pytest.mark.slow
def test_fine_tuning_shares_a_batch_between_two_nodes(site, tiny_recipe):
    network_of(tiny_recipe).save_pretrained(site.folder / "model")
    tokenizer.load_tokenizer(tiny_recipe.tokenizer_folder).save_pretrained(site.folder / "model")
    lines = [{"text": f"{word} {word} {number}", "label": word} for number in range(60) for word in ("kana", "kazu")]
    (site.folder / "labels.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tune = ("--nodes=2", "slurm/finetune.sh", "model", "--data", "labels.jsonl", "--out", "runs/tuned")
    said = site.over(site.submit(*tune, "--batch_size", 7), "FAILED")
    assert re.search(r"error: .*batch_size.*7.*2 ranks", said)
    said = site.over(site.submit(*tune, "--batch_size", 8, "--epochs", 8, "--learning_rates", "1e-3"), "COMPLETED")
    results = json.loads((site.folder / "runs" / "tuned" / finetune_folder.RESULTS).read_text())
    assert results["test"][results["chosen_by"]]["mean"] > 0.9, said


@pytest.mark.slow
def test_an_array_has_a_run_for_each_line_and_one_of_them_is_requeued(site, cluster):
    steps = {1: "training.steps=4", 2: "training.steps=200 checkpoint.every=20 training.evaluate_every=200"}
    lines = [f"--recipe {site.recipe} seed={seed} {length}" for seed, length in steps.items()]
    (site.folder / "runs.txt").write_text("\n".join(lines) + "\n")
    # and a command before each command stands for a container
    site.set("VENV=", 'INSIDE=(env PATH="$SEARCH" IN_CONTAINER=1)')
    number = site.submit("--array=1-2", "slurm/array.sh", "runs.txt", SEARCH=f"{sys.prefix}/bin:{os.environ['PATH']}")
    site.trains(f"runs/array-{number}-2")
    cluster.control("scancel", "--signal=USR1", "--batch", f"{number}_2")
    for task, restarts in ((1, "0"), (2, "1")):
        site.over(f"{number}_{task}", "COMPLETED")
        assert cluster.job(f"{number}_{task}")["Restarts"] == restarts
        run = site.folder / "runs" / f"array-{number}-{task}"
        assert load(str(run / "recipe.yaml")).seed == task and (run / "export").is_dir()


@pytest.mark.slow
def test_tasks_of_an_array_share_a_sweep_that_outlives_the_warning(site, cluster):
    sweep = ("slurm/sweep.sh", "runs/sweep", "--recipe", site.recipe, "--trials", "3")
    sweep += ("--space", "optimizer.learning_rate=log:1e-3:1e-1", "training.steps=200", "training.evaluate_every=100")
    number = site.submit(*sweep)
    site.trains("runs/sweep/trial-0000")
    cluster.control("scancel", "--signal=USR1", "--batch", number)
    assert "stopped by SIGUSR1; the same command goes on" in site.over(number, "COMPLETED")

    number = site.submit("--array=1-2", *sweep)
    for task in (1, 2):
        site.over(f"{number}_{task}", "COMPLETED")
    records = [json.loads(path.read_text()) for path in sorted((site.folder / "runs" / "sweep").glob("trial-*.json"))]
    assert [record["trial"] for record in records] == [0, 1, 2]
    assert {record["state"] for record in records} <= {"finished", "pruned"}
    hosts = {host for record in records for host in site.starts(f"runs/sweep/trial-{record['trial']:04d}")[-1]["hosts"]}
    assert len(hosts) == 2
    assert [len(site.starts(f"runs/sweep/trial-{trial:04d}")) for trial in range(3)] == [2, 1, 1]


@pytest.mark.slow
def test_a_study_over_nodes_outlives_a_power_cut_and_a_point_that_fails(site, cluster):
    study = ("slurm/scaling_study.sh", "runs/study", "--recipe", site.recipe, "--stages", "0,2", "--warmup", "1")
    points = site.folder / "runs" / "study" / "points"
    said = site.over(site.submit(*study, "--nodes", "1,2", "--steps", "100"), "COMPLETED")
    arrays = dict(re.findall(r"^(\d+) nodes: 2 points, job (\d+)$", said, re.MULTILINE))
    report = re.findall(r"^report: job (\d+)$", said, re.MULTILINE)[0]
    assert cluster.job(report)["Dependency"].count("afterany:") == 2

    # ---- a node of two fails while both measure
    task = f"{arrays['2']}_0"
    cluster.wait(task, "RUNNING")
    lock = points / "strong-n2x1-zero0-bucket50000000-rows12-micro3" / folders.LOCK
    wait_until(lambda: lock.is_file() and lock.read_text())
    last = cluster.control("scontrol", "show", "hostnames", cluster.job(task)["NodeList"]).split()[-1]
    cluster.cut_power(last)
    cluster.wait(task, "PENDING", "RUNNING", "COMPLETED", restarts=1)
    cluster.start_node(last)
    for nodes, task in itertools.product(arrays, range(2)):
        site.over(f"{arrays[nodes]}_{task}", "COMPLETED")
    found = {entry.point.name: entry for entry in study_folder.read(points.parent)}
    assert all(entry.measured for entry in found.values()) and len(found) == 4
    assert {len(set(entry.measured.hosts)) for entry in found.values() if entry.point.nodes == 2} == {2}
    cluster.wait(report, *ENDS)

    # ---- submitted again with one stage more, only its points are; one of them fails until it is given up
    broken = points / "strong-n1x1-zero1-bucket50000000-rows12-micro4" / folders.LOCK
    broken.mkdir(parents=True)
    more = [*study[:5], "0,1,2", *study[6:], "--nodes", "1,2", "--steps", "3"]
    said = site.over(site.submit(*more), "COMPLETED")
    arrays = dict(re.findall(r"^(\d+) nodes: 1 points, job (\d+)$", said, re.MULTILINE))
    site.over(f"{arrays['2']}_0", "COMPLETED")
    site.over(f"{arrays['1']}_0", "FAILED")
    assert "has failed 3 times; given up" in site.words(arrays["1"])
    assert cluster.job(f"{arrays['1']}_0")["ExitCode"] == "75:0"
    (failed,) = [entry for entry in study_folder.read(points.parent) if not entry.measured]
    assert len(failed.failures) == 3 and all(f"{broken.name}: Is a directory" in why for why in failed.failures)


# ---- what is refused


@pytest.mark.parametrize("nodes", [1, 2, 64, 512])
@pytest.mark.parametrize("script", SCRIPTS)
def test_templates_are_accepted_for_any_number_of_nodes(site, cluster, script, nodes):
    options = ("--test-only", "-p", "declared", f"--nodes={nodes}", "--gpus-per-node=8")
    done = cluster.submit(*options, f"slurm/{script}", cwd=site.folder)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"to start at .* using {8 * nodes} processors", done.stderr)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--gpus-per-node=9"], "Requested node configuration is not available"),
        (["--nodes=5"], "Node count specification invalid|Requested node configuration is not available"),
        (["--partition=gpus"], "invalid partition specified: gpus"),
        (["--partition=closed", "--account=other"], "Invalid account"),
    ],
)
def test_what_the_cluster_does_not_have_is_refused_at_once(site, cluster, options, said):
    done = cluster.submit(*options, "slurm/pretrain.sh", cwd=site.folder)
    assert done.returncode != 0 and re.search(said, done.stderr), done.stderr


@pytest.mark.parametrize(
    ("change", "arguments", "said"),
    [
        ("VENV=", [], "slurm/env.sh: VENV is not set; give it a value there"),
        ("VENV=/nowhere", [], "slurm/env.sh: VENV=/nowhere has no bin/python"),
        ("RANKS_PER_NODE=9", [], "9 ranks on a node, and it has 8 cores"),
        ("", ["--recipe", "nowhere"], "nowhere"),
        ("", ["training.stepz=3"], "stepz"),
    ],
)
def test_a_bad_setting_is_one_line_and_no_start_is_tried_again(site, cluster, change, arguments, said):
    site.set(change)
    number = site.submit("-N1", "slurm/pretrain.sh", *(arguments or ["--recipe", site.recipe]))
    words = site.over(number, "FAILED")
    assert len([line for line in words.splitlines() if line.startswith("error: ")]) == 1 and said in words
    assert cluster.job(number)["ExitCode"] == "2:0" and cluster.job(number)["Restarts"] == "0"


def test_a_start_that_never_comes_far_is_given_up(site):
    site.set("""INSIDE=(env PATH=$PATH:$VENV/bin bash -c '[ "$3" = scaler.train ] && exit 9; exec "$@"' --)""")
    said = site.over(site.submit("-N1", "slurm/pretrain.sh", "--recipe", site.recipe), "FAILED")
    assert said.count("requeued: the run goes on") == 2 and "3 starts in a row have brought no new checkpoint" in said


def test_partitions_of_the_tests_are_there(cluster):
    listed = cluster.control("sinfo", "-h", "-o", "%R").split()
    assert set(listed) == {*PARTITIONS, "declared"}
