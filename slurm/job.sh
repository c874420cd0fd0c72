# shellcheck shell=bash
# What the job scripts share; nothing here is your site's.
set -euo pipefail
FRUITLESS=3         # starts in a row that end without a new checkpoint, after which a job gives up
REQUEUE_SECONDS=240 # that a controller which does not answer is asked again

fail() {
    echo "error: $*" >&2
    exit 2
}

[ -n "${SLURM_JOB_ID:-}" ] || fail "this is a job script; submit it: sbatch $0"
cd "${SCALER_HOME:-$SLURM_SUBMIT_DIR}"
[ -f slurm/env.sh ] || fail "$PWD/slurm/env.sh: missing; submit from the project's folder, or export SCALER_HOME"
INSIDE=() SRUN_OPTIONS=() PREFLIGHT_OPTIONS=()
set +eu # for what a site's modules do
# shellcheck source=slurm/env.sh
. slurm/env.sh
set -eu
for name in RUN_PREFLIGHT RUN_EVALUATION SRUN_MPI; do
    [ -n "${!name:-}" ] || fail "slurm/env.sh: $name is not set; give it a value there"
done
if [ ${#INSIDE[@]} = 0 ] && [ ${#SRUN_OPTIONS[@]} = 0 ]; then
    [ -n "${VENV:-}" ] || fail "slurm/env.sh: VENV is not set; give it a value there"
    [ -x "$VENV/bin/python" ] || fail "slurm/env.sh: VENV=$VENV has no bin/python; make it there (\`make data\` does), or set VENV"
    export PATH="$VENV/bin:$PATH"
fi
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID} # or the whole array would be requeued
job=${job:-$SLURM_JOB_ID}
nodes=$SLURM_JOB_NUM_NODES
gpus=${SLURM_GPUS_ON_NODE:-0}
cores=$(tr ',' '\n' <<<"$SLURM_JOB_CPUS_PER_NODE" | sed 's/(.*//' | sort -n | sed -n 1p) # of the least node

# fits RANKS: so many can be on a node
fits() {
    [[ $1 =~ ^[0-9]+$ ]] || fail "$1: a number of ranks is needed" # before it becomes part of a sum, which would run it
    [ "$1" -gt 0 ] || fail "this job has no GPUs; set SBATCH_GPUS_PER_NODE in slurm/env.sh, or RANKS_PER_NODE to train on CPUs"
    [ "$1" -le "$cores" ] || fail "$1 ranks on a node, and it has $cores cores; lower the ranks in slurm/env.sh"
}

# on_nodes RANKS_PER_NODE [srun's options] -- COMMAND: on the nodes of the job; this shell becomes srun
on_nodes() {
    local options
    fits "$1"
    options=(--nodes="$nodes" --relative=0 --ntasks=$((nodes * $1)) --ntasks-per-node="$1")
    options+=(--distribution=block:block --cpus-per-task=$((cores / $1)))
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores / $1))}
    shift
    [ "$gpus" = 0 ] || options+=(--gpus-per-node="$gpus")
    while [ "$1" != -- ]; do
        options+=("$1")
        shift
    done
    shift
    exec srun "${options[@]}" "${SRUN_OPTIONS[@]}" "${INSIDE[@]}" "$@"
}

# option NAME ARGUMENT...: the value of --NAME among the arguments, empty where it is not; --run-dir is --run_dir
option() {
    local name=$1 found="" word
    shift
    while [ $# -gt 0 ]; do
        word=${1%%=*}
        if [ "${word//-/_}" = "__$name" ]; then
            case $1 in
                *=*) found=${1#*=} ;;
                *) found=${2:-} ;;
            esac
        fi
        shift
    done
    echo "$found"
}

# words LINE: put its words into `found`, read as a shell reads them, but nothing is expanded; status 1 for half a quote
words() {
    local rest=${1%$'\r'} word="" begun="" inner
    rest=${rest#$'\xef\xbb\xbf'} # with which editors of Windows begin a file, as they end its lines with the \r above
    found=()
    while [ -n "$rest" ]; do
        if [[ $rest =~ ^[[:space:]]+ ]]; then
            [ -z "$begun" ] || found+=("$word")
            word="" begun=""
        elif [ -z "$begun" ] && [ "${rest:0:1}" = "#" ]; then
            break
        elif [[ $rest =~ ^\'([^\']*)\' || $rest =~ ^\\(.) || $rest =~ ^([^[:space:]\'\"\\]+) ]]; then
            word+=${BASH_REMATCH[1]} begun=yes
        elif [[ $rest =~ ^\"(([^\"\\]|\\.)*)\" ]]; then
            inner=${BASH_REMATCH[1]}
            word+=$(sed 's/\\\([$`"\\]\)/\1/g' <<<"$inner") begun=yes
        else
            return 1
        fi
        rest=${rest:${#BASH_REMATCH[0]}}
    done
    [ -z "$begun" ] || found+=("$word")
}

# requeue [NODES]: put this very job back into the queue, and leave out these nodes from now on
requeue() {
    local excluded="" end=$((SECONDS + REQUEUE_SECONDS))
    trap '' TERM CONT # which the requeue sends to this script, and scontrol would die of, too
    if [ -n "${1:-}" ]; then
        excluded=$(scontrol -o show job "$job" | sed -n 's/.* ExcNodeList=\([^ ]*\).*/\1/p') || true
        [ "$excluded" != "(null)" ] || excluded=
    fi
    until scontrol requeue "$job"; do
        [ $SECONDS -lt $end ] || fail "job $job cannot be requeued; submit it again with --run_dir $run_dir"
        sleep 10
    done
    if [ -n "${1:-}" ]; then
        # SLURM takes this of jobs that do not run; it ends this one just now
        for _ in {1..20}; do
            ! scontrol update JobId="$job" ExcNodeList="${excluded:+$excluded,}$1" || exit 0
            sleep 0.2
        done
        echo "error: $1 could not be excluded; the next preflight will find them again" >&2
    fi
    exit 0
}

# again [NODES]: requeue, unless the last starts have all been fruitless
again() {
    local tries=0 counted=$run_dir/logs/fruitless-$job
    if [ "$(newest)" = "$newest_before" ]; then
        tries=$(grep -xE '[0-9]{1,9}' "$counted" 2>/dev/null || echo 0)
        tries=$((10#$tries + 1))
    fi
    echo "$tries" >"$counted"
    if [ "$tries" -ge $FRUITLESS ]; then
        rm "$counted"
        echo "error: $tries starts in a row have brought no new checkpoint; given up; look into $logs" >&2
        exit 75
    fi
    echo "requeued: the run goes on from its last checkpoint${1:+, without $1}"
    requeue "${1:-}"
}

newest() { readlink "$run_dir/checkpoints/latest" || true; }
# state KEY: what the run's state.json says
state() { sed -n 's/^ *"'"$1"'": "\(.*\)",*$/\1/p' "$run_dir/state.json" 2>/dev/null || true; }

# in_background COMMAND...: run it, pass the warning on, and set `status` to its own
in_background() {
    "$@" &
    srun=$!
    while :; do
        status=0
        wait $srun || status=$?
        kill -0 $srun 2>/dev/null || break # else it was a signal that ended the waiting
    done
    status=0
    wait $srun || status=$? # bash remembers its own status
    srun=
}

check_nodes() {
    # ranks that are not heard of are waited for by the preflight; those that never end, by srun, for a minute
    on_nodes "$ranks" --kill-on-bad-exit=0 --wait=60 -- \
        python -m scaler.preflight "${PREFLIGHT_OPTIONS[@]}" "$@" >"$logs/preflight.txt" 2>&1
}

start_ranks() {
    on_nodes "$ranks" --kill-on-bad-exit=1 --output="$logs/%N-rank%t.txt" --open-mode=append -- \
        python -m scaler.train "$@" 2>"$logs/srun.txt"
}

# train ARGUMENT...: what `python -m scaler.train` takes; to the recipe's last step, through requeues of this job
train() {
    local first follow
    ranks=${RANKS_PER_NODE:-$gpus} srun="" status=0 warned="" ended=""
    run_dir=$(option run_dir "$@")
    run_dir=${run_dir:-runs/$SLURM_JOB_NAME-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+-$SLURM_ARRAY_TASK_ID}}
    fits "$ranks"
    [ -n "$(option recipe "$@")" ] || [ -f "$run_dir/recipe.yaml" ] || set -- --recipe aws_roberta "$@"
    set -- "$@" --run_dir "$run_dir"
    # as many nodes as share the batch equally
    nodes=$(on_nodes_of_one python -m scaler nodes-for-batch --nodes "$nodes" --ranks_per_node "$ranks" "$@")
    [ "$nodes" = "$SLURM_JOB_NUM_NODES" ] || echo "only $nodes of $SLURM_JOB_NUM_NODES nodes are used, to share the batch equally"
    set -- "$@" --ranks $((nodes * ranks))

    logs=$run_dir/logs/job-$SLURM_JOB_ID-start-${SLURM_RESTART_COUNT:-0}
    mkdir -p "$logs"
    newest_before=$(newest)
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
    first=${first%%$'\n'*}
    # a port of this job's own, under those that Linux gives to whoever asks for any
    MASTER_PORT=${MASTER_PORT:-$((10000 + SLURM_JOB_ID * 7 % 20000))}
    while (: <"/dev/tcp/127.0.0.1/$MASTER_PORT") 2>/dev/null; do MASTER_PORT=$((MASTER_PORT + 1)); done
    export MASTER_ADDR=${MASTER_ADDR:-$first} MASTER_PORT
    echo "start ${SLURM_RESTART_COUNT:-0} of $run_dir on $nodes nodes x $ranks ranks ($SLURM_JOB_NODELIST); every rank's words are in $logs"

    # the warning before the time limit: every rank saves, and ends
    trap 'warned=yes; [ -z "$srun" ] || kill -USR1 $srun || true' USR1
    if [ "$RUN_PREFLIGHT" = yes ]; then
        in_background check_nodes "$@"
        cat "$logs/preflight.txt"
        [ $status != 2 ] || exit 2
        [ $status = 0 ] && [ -z "$warned" ] ||
            again "$(cat "$run_dir/preflight/$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}-"*/bad_nodes 2>/dev/null || true)"
    fi

    trap 'ended=yes' TERM # scancel, requeue, preemption: SLURM tells the ranks by itself
    : >"$logs/$first-rank0.txt"
    tail -n +1 -f "$logs/$first-rank0.txt" &
    follow=$!
    in_background start_ranks "$@"
    sleep 1 # for the last words to be followed
    kill $follow 2>/dev/null || true
    cat "$logs/srun.txt" >&2

    if [ $status = 0 ] && [ "$(state state)" = finished ]; then
        [ "$RUN_EVALUATION" != yes ] || evaluate
        exit 0
    fi
    [ -z "$ended" ] || exit $status
    if [ $status = 0 ] && { [ -n "$warned" ] || [ "$(state by)" = SIGTERM ]; }; then
        requeue # SIGTERM to the ranks and not to this script: a preemption that leaves them time
    elif [ $status = 0 ]; then
        exit 0 # stopped, as somebody asked it to
    elif grep -q 'Exited with exit code 2$' "$logs/srun.txt"; then
        exit 2 # no other start mends that
    fi
    again
}

# on_nodes_of_one COMMAND...: once, on the first node, without its GPUs
on_nodes_of_one() {
    (nodes=1 gpus=0 && on_nodes 1 -- "$@")
}

# evaluate: submit it, to run after this job
evaluate() {
    local options=(--dependency="afterok:$SLURM_JOB_ID" --kill-on-invalid-dep=yes --time=01:00:00)
    options+=(--partition="$SLURM_JOB_PARTITION" ${SLURM_JOB_ACCOUNT:+--account="$SLURM_JOB_ACCOUNT"})
    sbatch "${options[@]}" slurm/evaluate.sh "$run_dir" ||
        echo "error: the evaluation could not be submitted; the run is finished; by hand: sbatch slurm/evaluate.sh $run_dir" >&2
}
