#!/bin/bash
# Pretrain on several nodes:  sbatch [--nodes=N] slurm/pretrain.sh [what scaler/train.py takes]
#   sbatch slurm/pretrain.sh                                            aws_roberta, ZeRO-2, two nodes
#   sbatch --nodes=8 slurm/pretrain.sh --recipe distilbert_mix --deepspeed_config ds_configs/zero1.json
#   sbatch slurm/pretrain.sh --run_dir runs/pretrain-4711               goes on with that run
# With --nodes=4-8 it starts on as many of them as are free, and goes on with others after a failure.
#SBATCH --job-name=pretrain
#SBATCH --nodes=2
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
# shellcheck source=slurm/job.sh
. "${SCALER_HOME:-${SLURM_SUBMIT_DIR:-.}}/slurm/job.sh" || exit 2 # submit from the project's folder, or export SCALER_HOME
train "$@"
