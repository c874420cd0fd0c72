# shellcheck shell=bash
# What the job scripts share; nothing here is your site's.
set -euo pipefail
FRUITLESS=3 # starts in a row that end without a new checkpoint, after which a job gives up

fail() {
    echo "error: $*" >&2
    exit 2
}

[ -n "${SLURM_JOB_ID:-}" ] || fail "this is a job script; submit it: sbatch $0"
[ -f slurm/env.sh ] || fail "$PWD/slurm/env.sh: missing; submit from the project's folder, or export SCALER_HOME"
# shellcheck source=slurm/env.sh
. slurm/env.sh
for name in RUN_PREFLIGHT RUN_EVALUATION SRUN_MPI; do
    [ -n "${!name:-}" ] || fail "slurm/env.sh: $name is not set; give it a value there"
done
if [ ${#INSIDE[@]} = 0 ] && [ ${#SRUN_OPTIONS[@]} = 0 ]; then
    [ -n "${VENV:-}" ] || fail "slurm/env.sh: VENV is not set; give it a value there"
    [ -x "$VENV/bin/python" ] || fail "slurm/env.sh: VENV=$VENV has no bin/python; make it there (\`make data\` does), or set VENV"
    export PATH="$VENV/bin:$PATH"
fi
nodes=$SLURM_JOB_NUM_NODES
gpus=${SLURM_GPUS_ON_NODE:-0}

# on_nodes RANKS_PER_NODE [srun's options] -- COMMAND: on every node of the job
on_nodes() {
    local options=(--nodes="$nodes" --relative=0 --ntasks=$((nodes * $1)) --ntasks-per-node="$1") cpus
    fits "$1"
    cpus=$((SLURM_CPUS_ON_NODE / $1))
    shift
    [ "$gpus" = 0 ] || options+=(--gpus-per-node="$gpus")
    while [ "$1" != -- ]; do
        options+=("$1")
        shift
    done
    shift
    OMP_NUM_THREADS=${OMP_NUM_THREADS:-$cpus} exec srun --cpus-per-task="$cpus" "${options[@]}" "${SRUN_OPTIONS[@]}" "${INSIDE[@]}" "$@"
}

# fits RANKS: so many can be on a node
fits() {
    [ "$1" -gt 0 ] || fail "the nodes of this job have no GPUs; set RANKS_PER_NODE in slurm/env.sh"
    [ "$1" -le "$SLURM_CPUS_ON_NODE" ] || fail "$1 ranks on a node, and it has $SLURM_CPUS_ON_NODE cores; lower the ranks in slurm/env.sh"
}

# option NAME ARGUMENT...: the value of --NAME among the arguments, empty where it is not
option() {
    local name=$1 found=""
    shift
    while [ $# -gt 0 ]; do
        case $1 in
            --"$name") found=${2:-} ;;
            --"$name"=*) found=${1#*=} ;;
        esac
        shift
    done
    echo "$found"
}

# requeue [NODES]: put this very job back into the queue, and leave out these nodes from now on
requeue() {
    local excluded
    trap '' TERM CONT # which the requeue sends to this script, and scontrol would die of, too
    excluded=$(scontrol -o show job "$SLURM_JOB_ID" | sed -n 's/.* ExcNodeList=\([^ ]*\).*/\1/p')
    [ "$excluded" != "(null)" ] || excluded=
    scontrol requeue "$SLURM_JOB_ID" || fail "job $SLURM_JOB_ID cannot be requeued; submit it again with --run_dir $run_dir"
    if [ -n "${1:-}" ]; then
        # SLURM takes this of jobs that do not run; it ends this one just now
        for _ in {1..20}; do
            scontrol update JobId="$SLURM_JOB_ID" ExcNodeList="${excluded:+$excluded,}$1" && exit 0
            sleep 0.2
        done
        echo "error: $1 could not be excluded; the next preflight will find them again" >&2
    fi
    exit 0
}

# again [NODES]: requeue, unless the last starts have all been fruitless
again() {
    local tries=0
    if [ "$(newest)" = "$newest_before" ]; then
        tries=$(($(cat "$run_dir/logs/fruitless" 2>/dev/null || echo 0) + 1))
    fi
    echo "$tries" >"$run_dir/logs/fruitless"
    if [ "$tries" -ge $FRUITLESS ]; then
        rm "$run_dir/logs/fruitless"
        echo "error: $tries starts in a row have brought no new checkpoint; given up; look into $logs" >&2
        exit 75
    fi
    echo "requeued: the run goes on from its last checkpoint${1:+, without $1}"
    requeue "${1:-}"
}

newest() { readlink "$run_dir/checkpoints/latest" || true; }
# state KEY: what the run's state.json says
state() { sed -n 's/^ *"'"$1"'": "\(.*\)",*$/\1/p' "$run_dir/state.json" 2>/dev/null || true; }

# train ARGUMENT...: what `python -m scaler.train` takes; to the recipe's last step, through requeues of this job
train() {
    local ranks=${RANKS_PER_NODE:-$gpus} first srun="" follow status=0 warned="" ended="" rows
    run_dir=$(option run_dir "$@")
    run_dir=${run_dir:-runs/$SLURM_JOB_NAME-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+-$SLURM_ARRAY_TASK_ID}}
    fits "$ranks"
    [ -n "$(option recipe "$@")" ] || [ -f "$run_dir/recipe.yaml" ] || set -- --recipe aws_roberta "$@"
    # of nodes that are left after a failure, as many as share the run's batch
    rows=$(sed -n '/^training:/,/^[a-z]/s/^  rows: \([0-9]*\)$/\1/p' "$run_dir/recipe.yaml" 2>/dev/null || true)
    while [ -n "$rows" ] && [ "$nodes" -gt 1 ] && [ $((rows % (nodes * ranks))) != 0 ]; do nodes=$((nodes - 1)); done
    [ "$nodes" = "$SLURM_JOB_NUM_NODES" ] || echo "only $nodes of $SLURM_JOB_NUM_NODES nodes are used, to share $rows rows equally"
    set -- "$@" --run_dir "$run_dir" --ranks $((nodes * ranks))

    mkdir -p "$run_dir/logs"
    logs=$run_dir/logs/$(printf 'start-%03d' "$(find "$run_dir/logs" -maxdepth 1 -name 'start-*' | wc -l)")
    mkdir "$logs"
    newest_before=$(newest)
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    # a port of this job's own, under those that Linux gives to whoever asks for any
    MASTER_PORT=${MASTER_PORT:-$((10000 + SLURM_JOB_ID * 7 % 20000))}
    while (: <"/dev/tcp/127.0.0.1/$MASTER_PORT") 2>/dev/null; do MASTER_PORT=$((MASTER_PORT + 1)); done
    export MASTER_ADDR=${MASTER_ADDR:-$first} MASTER_PORT
    echo "start ${logs##*-} of $run_dir on $nodes nodes x $ranks ranks ($SLURM_JOB_NODELIST); every rank's words are in $logs"

    trap 'warned=yes; [ -z "$srun" ] || kill -USR1 $srun' USR1 # before the time limit: every rank saves, and ends
    if [ "$RUN_PREFLIGHT" = yes ]; then
        rm -f "$run_dir/preflight/bad_nodes"
        (on_nodes "$ranks" --kill-on-bad-exit=0 -- python -m scaler.preflight "${PREFLIGHT_OPTIONS[@]}" "$@") 2>&1 |
            tee "$logs/preflight.txt" || status=$?
        [ $status != 2 ] || exit 2
        [ -z "$warned" ] || requeue
        [ $status = 0 ] || again "$(cat "$run_dir/preflight/bad_nodes" 2>/dev/null || true)"
    fi

    trap 'ended=yes' TERM                    # scancel, requeue, preemption: SLURM tells the ranks by itself
    : >"$logs/$first-rank0.txt"
    tail -n +1 -f "$logs/$first-rank0.txt" &
    follow=$!
    (on_nodes "$ranks" --kill-on-bad-exit=1 --output="$logs/%N-rank%t.txt" --open-mode=append -- \
        python -m scaler.train "$@" 2>"$logs/srun.txt") &
    srun=$!
    while :; do
        status=0
        wait $srun || status=$?
        kill -0 $srun 2>/dev/null || break # else it was a signal that ended the waiting
    done
    sleep 1 # for the last words to be followed
    kill $follow 2>/dev/null || true
    cat "$logs/srun.txt" >&2

    [ -z "$ended" ] || exit $status
    if [ $status = 0 ] && [ "$(state state)" = finished ]; then
        [ "$RUN_EVALUATION" != yes ] || sbatch --dependency="afterok:$SLURM_JOB_ID" --kill-on-invalid-dep=yes slurm/evaluate.sh "$run_dir"
        exit 0
    elif [ $status = 0 ] && { [ -n "$warned" ] || [ "$(state by)" = SIGTERM ]; }; then
        requeue # SIGTERM to the ranks and not to this script: a preemption that leaves them time
    elif [ $status = 0 ]; then
        exit 0 # stopped, as somebody asked it to
    elif grep -q 'Exited with exit code 2$' "$logs/srun.txt"; then
        exit 2 # no other start mends that
    fi
    again
}
