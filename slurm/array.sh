#!/bin/bash
# Many short runs, one a line of a file:  sbatch --array=1-8 slurm/array.sh runs.txt
# A line holds what scaler/train.py takes, such as: --recipe quickstart 'corpus.sources=[my/texts]' training.steps=100
# Quotes and backslashes mean what they mean to a shell; nothing is expanded.
# Each run has a node of its own, and its folder is runs/array-JOB-LINE.
#SBATCH --job-name=array
#SBATCH --nodes=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A-%a.out
# shellcheck source=slurm/job.sh
. "${SCALER_HOME:-${SLURM_SUBMIT_DIR:-.}}/slurm/job.sh" || exit 2 # submit from the project's folder, or export SCALER_HOME
[ -n "${SLURM_ARRAY_TASK_ID:-}" ] || fail "no array; submit with --array=1-N for a file of N lines"
[ -f "${1:-}" ] || fail "${1:-no file}: no such file; name one that has a run's arguments in each line"
line=$(sed -n "${SLURM_ARRAY_TASK_ID}p" "$1")
words "$line" || fail "$1, line ${SLURM_ARRAY_TASK_ID}: a quote or backslash has no end"
[ ${#found[@]} -gt 0 ] || fail "$1 has nothing in line ${SLURM_ARRAY_TASK_ID} of its $(grep -c '' "$1") lines"
train "${found[@]}"
