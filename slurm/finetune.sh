#!/bin/bash
# Fine-tune an exported encoder:  sbatch slurm/finetune.sh MODEL --data FILES [what scaler.finetune takes]
#   sbatch slurm/finetune.sh runs/NAME --data labels.jsonl --learning_rates 2e-5 5e-5 --seeds 0 1 2
# A rank on each GPU of a node (--nodes=2: of two); without GPUs one, or RANKS_PER_NODE. Submitted again, it goes on.
#SBATCH --job-name=finetune
#SBATCH --nodes=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
# shellcheck source=slurm/job.sh
. "${SCALER_HOME:-${SLURM_SUBMIT_DIR:-.}}/slurm/job.sh" || exit 2 # submit from the project's folder, or export SCALER_HOME
on_nodes "${RANKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}" --kill-on-bad-exit=1 -- python -m scaler.finetune "$@"
