#!/bin/bash
# Replica exchange on 2 machines with 4 GPUs each: 8 processes, one run.
#
#     sbatch remd.sh FOLDER_OF_MODEL_AND_DATASET OUTPUT_FOLDER
#
# A run longer than the queue's limit is several jobs. Each is this script with the same arguments
# and goes on where the last stopped; one that finds the run finished does nothing. Submit as many
# as it takes at once; those of one name wait for each other:
#
#     for k in 1 2 3 4; do sbatch --dependency=singleton remd.sh FOLDER OUTPUT_FOLDER; done
#
# Outside of a queue it rehearses: the small version, in two processes on the CPUs of this machine:
#
#     bash remd.sh FOLDER OUTPUT_FOLDER
#
#SBATCH --job-name=remd
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1     # one torchrun a machine, which starts a process for each GPU
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8       # two for each process
#SBATCH --time=04:00:00
#SBATCH --requeue               # after a machine's failure: goes on from the last checkpoint
#SBATCH --open-mode=append

set -euo pipefail
input=${1:?folder of model.pt and dataset.h5}
output=${2:?output folder, on a disk that all machines see}
here=${SLURM_SUBMIT_DIR:-.}     # sbatch runs a copy of this file: remd.py is where it came from

# Ten minutes less than --time, for setting up and for the last frames.
seconds=$((4 * 3600 - 600))

export OMP_NUM_THREADS=1

if [[ -z "${SLURM_JOB_ID:-}" ]]; then
    exec torchrun --standalone --nproc-per-node=2 \
        "$(dirname "$0")/remd.py" --input "$input" --output "$output" --quick
fi

# Processes meet at the first machine.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
port=$((20000 + SLURM_JOB_ID % 10000))

# The number of processes is a part of the run: a job with another one is refused. --kill-on-bad-exit:
# where one machine fails the others end too, instead of waiting for it.
srun --kill-on-bad-exit=1 torchrun \
    --nnodes="$SLURM_JOB_NUM_NODES" \
    --nproc-per-node=4 \
    --rdzv-id="$SLURM_JOB_ID" \
    --rdzv-backend=c10d \
    --rdzv-endpoint="$first:$port" \
    "$here/remd.py" --input "$input" --output "$output" --ns 100 --seconds "$seconds"
