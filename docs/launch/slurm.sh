#!/bin/bash
# Train on several machines by Slurm: one torchrun on each, one process for each GPU.
#
#     DATA=/shared/photographs RUN=/shared/runs/photographs sbatch docs/launch/slurm.sh
#     DATA=/shared/films RUN=/shared/runs/films RECIPE=video sbatch docs/launch/slurm.sh \
#         latent.train.batch=16 data.frames=33
#
# What follows the script's name are settings (--set). A batch has at least one sample for each GPU, of every stage: that
# of an autoencoder is small where one GPU trains it.
#
# At the time limit the run saves and leaves, and the job queues again by itself and goes on; likewise after a preemption
# or the failure of a machine. A process that is killed costs what came after the last checkpoint, and no new job.
# DATA, RUN and VENV are folders that every machine sees.

#SBATCH --job-name=rectiflow
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=rectiflow-%j.log
#SBATCH --signal=B:TERM@300

set -euo pipefail

DATA=${DATA:?the folder of pictures}
RUN=${RUN:?the folder of the run}
# shellcheck disable=SC1091
source "${VENV:-$HOME/rectiflow/.venv}/bin/activate"

gpus=${SLURM_GPUS_ON_NODE:-1}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p) # reads all: `head` would close the pipe and end the job
export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / gpus))
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240 # seconds in which a run may save before torchrun kills it

srun --kill-on-bad-exit=1 torchrun \
    --nnodes="$SLURM_JOB_NUM_NODES" \
    --nproc-per-node="$gpus" \
    --max-restarts=3 \
    --rdzv-backend=c10d \
    --rdzv-id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
    --rdzv-endpoint="$first:29400" \
    -m -- rectiflow train "${RECIPE:-latent-256}" --data "$DATA" --run "$RUN" \
    --set activation_checkpointing=true compile=true "$@" &
step=$!

# Slurm tells this script alone (B:), 300 seconds before the end; srun hands the signal on to every torchrun.
stopped=no
trap 'stopped=yes; kill -TERM "$step" || true' TERM

status=0
wait "$step" || status=$?
if [ "$stopped" = yes ]; then # the signal ended `wait`, not the step, which is saving
    wait "$step" || true
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
