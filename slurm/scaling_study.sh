#!/bin/bash
# Measure how a training scales over nodes:  sbatch slurm/scaling_study.sh FOLDER [what scaler.study takes]
#   sbatch slurm/scaling_study.sh runs/study --recipe aws_roberta --nodes 1,2,4 --stages 0,1,2,3 --series strong,weak
# This job writes down the points and submits an array of jobs for each number of nodes, and the report behind them all.
# A task measures a point; one that fails is requeued, three times at most. Submitted again, it does what is missing.
#SBATCH --job-name=scaling_study
#SBATCH --nodes=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=01:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
# shellcheck source=slurm/job.sh
. "${SCALER_HOME:-${SLURM_SUBMIT_DIR:-.}}/slurm/job.sh" || exit 2 # submit from the project's folder, or export SCALER_HOME
run_dir=${1:-}
[ -n "$run_dir" ] && [ "${run_dir#-}" = "$run_dir" ] || fail "the study's folder comes first: sbatch slurm/scaling_study.sh FOLDER ..."

# submit [sbatch's options] SCRIPT [its arguments]: a job of this one's queue; its number
submit() {
    sbatch --parsable --partition="$SLURM_JOB_PARTITION" ${SLURM_JOB_ACCOUNT:+--account="$SLURM_JOB_ACCOUNT"} "$@" |
        cut -d ';' -f 1
}

# define ARGUMENT...: write the points down, and submit what is not measured yet
define() {
    local behind="" ranks=${RANKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-0}} sizes size index count number to_do
    if [ -z "$(option ranks_per_node "$@")" ]; then
        fits "$ranks"
        set -- "$@" --ranks_per_node "$ranks"
    fi
    to_do=$(on_nodes_of_one python -m scaler.study "$@" --write_only)
    mapfile -t sizes < <(sed -n 's/^[a-z]*-n\([0-9]*\)x.*/\1/p' <<<"$to_do" | sort -nu)
    mkdir -p "$run_dir/logs"
    for size in "${sizes[@]}"; do
        index=$run_dir/logs/job-$SLURM_JOB_ID-nodes-$size.txt
        grep "^[a-z]*-n${size}x" <<<"$to_do" >"$index"
        count=$(wc -l <"$index")
        number=$(submit --nodes="$size" --array="0-$((count - 1))${ARRAY_AT_ONCE:+%$ARRAY_AT_ONCE}" --output=%x-%A-%a.out \
            slurm/scaling_study.sh "$run_dir" --index "$index" --steps "$(option steps --steps 10 "$@")" \
            --warmup "$(option warmup --warmup 3 "$@")")
        echo "$size nodes: $count points, job $number"
        behind+=:$number
    done
    number=$(submit ${behind:+--dependency="afterany$behind"} slurm/report.sh "$run_dir")
    echo "report: job $number"
}

start_point() {
    on_nodes "$ranks" --kill-on-bad-exit=1 --output="$log" -- \
        python -m scaler.studies.point "$run_dir" "$point" --steps "$(option steps "$@")" --warmup "$(option warmup "$@")"
}

# measure ARGUMENT...: the point of this task; where it fails, note why, and be requeued
measure() {
    local folder tried why ended="" status=0 srun=""
    point=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "$(option index "$@")")
    folder=$run_dir/points/$point
    [ -f "$folder/point.json" ] || fail "$folder: no point of a study"
    [ ! -f "$folder/measured.json" ] || exit 0
    ranks=${point#*x} ranks=${ranks%%-*}
    log=$run_dir/logs/$point-$job-${SLURM_RESTART_COUNT:-0}.txt
    : >"$log" # where srun itself may not come to write
    trap 'ended=yes' TERM # of SLURM, for a failed node or scancel: nothing that the point could help
    in_background start_point "$@"
    [ -z "$ended" ] || exit $status
    [ ! -f "$folder/measured.json" ] || exit 0
    cat "$log" >&2
    ! grep -q '^error: .*another run is at work in it' "$log" || exit 2 # another job measures this point
    # without what JSON would want otherwise
    why=$(grep -m 1 '^error: ' "$log" | cut -c 8-400 | LC_ALL=C tr -cd ' !#-[]-~') || why="status $status; see $log"
    echo "{\"reason\": \"$why\"}" >>"$folder/failures.jsonl"
    tried=$(wc -l <"$folder/failures.jsonl")
    if [ "$tried" -ge $FRUITLESS ]; then
        echo "error: $point has failed $tried times; given up" >&2
        exit 75
    fi
    requeue
}

if [ -n "$(option index "$@")" ]; then
    measure "$@"
else
    define "$@"
fi
