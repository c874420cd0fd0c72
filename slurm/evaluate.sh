#!/bin/bash
# Evaluate a finished run on the test split:  sbatch slurm/evaluate.sh runs/NAME [what scaler.evaluate takes]
# pretrain.sh submits it by itself.
#SBATCH --job-name=evaluate
#SBATCH --nodes=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=01:00:00
#SBATCH --output=%x-%j.out
# shellcheck source=slurm/job.sh
. "${SCALER_HOME:-${SLURM_SUBMIT_DIR:-.}}/slurm/job.sh" || exit 2 # submit from the project's folder, or export SCALER_HOME
on_nodes 1 -- python -m scaler.evaluate "$@"
