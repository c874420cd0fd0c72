#!/bin/bash
# Search hyperparameters on several nodes:  sbatch --array=1-4 slurm/sweep.sh FOLDER [what scaler.sweep takes]
#   sbatch --array=1-4 slurm/sweep.sh runs/sweep --recipe quickstart --space optimizer.learning_rate=log:3e-4:3e-2 --trials 32
# Each task has a node of its own, and trains one trial after the other on it, a rank on each GPU; RANKS_PER_NODE=1 and
# --workers 8 train eight at a time. Without --array it is one node. Submitted again, it goes on.
#SBATCH --job-name=sweep
#SBATCH --nodes=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
# shellcheck source=slurm/job.sh
. "${SCALER_HOME:-${SLURM_SUBMIT_DIR:-.}}/slurm/job.sh" || exit 2 # submit from the project's folder, or export SCALER_HOME
on_nodes 1 --kill-on-bad-exit=1 -- python -m scaler.sweep "$@" --ranks "${RANKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}"
