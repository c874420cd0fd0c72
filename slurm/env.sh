# shellcheck shell=bash
# The settings of your site: the only file here that you edit. The job scripts source it on each job's first node.
# Source it in your login shell, too (`. slurm/env.sh`), so that sbatch knows the queue.

# ---- the queue: sbatch reads these; what stands in a script gives way to them, and they to sbatch's command line
#export SBATCH_PARTITION=gpu
#export SBATCH_ACCOUNT=my-project
#export SBATCH_TIMELIMIT=24:00:00
#export SBATCH_GPUS_PER_NODE=8 # where whole nodes (--exclusive) come without their GPUs

# ---- Python: a virtual environment that all nodes see ...
#module load cuda/12.8
# shellcheck disable=SC2034 # job.sh reads what is not exported
VENV=${VENV:-$PWD/.venv}
# ... or a container that has one: what stands before each command in it (Apptainer), or srun's options (Pyxis)
INSIDE=() # (apptainer exec --nv --bind "$PWD" /shared/images/scaler.sif)
SRUN_OPTIONS=() # (--container-image=/shared/images/scaler.sqsh --container-mounts="$PWD:$PWD" --container-workdir="$PWD")

# ---- ranks on each node: by default one a GPU, for preparing data one a core
RANKS_PER_NODE=${RANKS_PER_NODE:-}
PREPARE_RANKS_PER_NODE=${PREPARE_RANKS_PER_NODE:-}
SRUN_MPI=${SRUN_MPI:-pmi2} # for preparing data; `srun --mpi=list` names those of the site

# ---- jobs of a scaling study that run at a time, for each number of nodes; empty: as many as there is room for
# shellcheck disable=SC2034 # scaling_study.sh reads it
ARRAY_AT_ONCE=${ARRAY_AT_ONCE:-}

# ---- the network, where the libraries choose a wrong one by themselves
#export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
#export NCCL_IB_HCA=mlx5

# ---- caches, which are quickest and safest on the node's own disk
local_cache=${TMPDIR:-/tmp}/scaler-$(id -un)
export TRITON_CACHE_DIR=$local_cache/triton TORCH_EXTENSIONS_DIR=$local_cache/torch
#export HF_HOME=/shared/cache/huggingface # this one all nodes share

# ---- what comes with a training
RUN_PREFLIGHT=${RUN_PREFLIGHT:-yes} # check all nodes before each start; a bad one is left out
PREFLIGHT_OPTIONS=()                # (--gpu H100) and others of `python -m scaler.preflight --help`
RUN_EVALUATION=${RUN_EVALUATION:-yes} # evaluate a finished run on the test split, as a job of its own
