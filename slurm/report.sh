#!/bin/bash
# The report of a scaling study:  sbatch slurm/report.sh FOLDER [what scaler.report takes]
# scaling_study.sh submits it by itself.
#SBATCH --job-name=report
#SBATCH --nodes=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=01:00:00
#SBATCH --output=%x-%j.out
# shellcheck source=slurm/job.sh
. "${SCALER_HOME:-${SLURM_SUBMIT_DIR:-.}}/slurm/job.sh" || exit 2 # submit from the project's folder, or export SCALER_HOME
on_nodes_of_one python -m scaler.report "$@"
