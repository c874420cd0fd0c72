#!/bin/bash
# Prepare a recipe's data on several nodes:  sbatch [--nodes=N] slurm/prepare_data.sh [what `python -m data_prep` takes]
# Stopped, killed or requeued, the same command goes on where it was.
#SBATCH --job-name=prepare_data
#SBATCH --nodes=2
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
# shellcheck source=slurm/job.sh
. "${SCALER_HOME:-${SLURM_SUBMIT_DIR:-.}}/slurm/job.sh" || exit 2 # submit from the project's folder, or export SCALER_HOME
# shellcheck disable=SC2034 # on_nodes reads it
gpus=0
[ -n "$(option recipe "$@")" ] || set -- --recipe aws_roberta "$@"
on_nodes "${PREPARE_RANKS_PER_NODE:-$SLURM_CPUS_ON_NODE}" --mpi="$SRUN_MPI" --kill-on-bad-exit=1 -- python -m data_prep "$@"
