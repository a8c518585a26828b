#!/bin/bash
# A Slurm job that runs the gate on all GPUs of several nodes with srun, for one report.
#
#   sbatch --nodes=4 slurm-job.sh [further options of gpucheck run, such as --accept FILE]
#
#SBATCH --job-name=gpucheck
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=00:30:00
#
# Set here or in the environment of sbatch:
export PYTHON=${PYTHON:-python3}                       # has the torch and triton to test
export GPUCHECK=${GPUCHECK:-$HOME/gpucheck.pyz}        # from `make pyz`, or an installed gpucheck script
export SCENARIO=${SCENARIO:-gate}
export OUT=${OUT:-$PWD/gpucheck-$SLURM_JOB_ID}         # the run folder; need not be shared
PORT=${PORT:-29500}                                    # free on the first node, as is PORT + 1 for the records

# The exit code of the job is the one of the run: 0 PASS, 1 FAIL, 3 inconclusive.
set -u
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export ENDPOINT=$first:$PORT

# shellcheck disable=SC2016 # the tasks expand it, each with its own node number
srun --ntasks-per-node=1 --kill-on-bad-exit=0 bash -c '
    exec "$PYTHON" "$GPUCHECK" run "$SCENARIO" --device cuda --out "$OUT" \
        ${SLURM_GPUS_ON_NODE:+--expect-gpus "$SLURM_GPUS_ON_NODE"} \
        --nnodes "$SLURM_NNODES" --node-rank "$SLURM_NODEID" \
        --rdzv-endpoint "$ENDPOINT" --rdzv-id "gpucheck-$SLURM_JOB_ID" "$@"
' gpucheck "$@"
