#!/bin/bash
# A Slurm prolog that lets a job start only on GPUs that compute right.
#
# Install it on every node, and in slurm.conf:
#   Prolog=/etc/slurm/gpucheck-prolog.sh
#   PrologFlags=Alloc
# Slurm drains the node and requeues the job where it ends with anything but 0. It takes less than 60 s.
#
# Set here or in the environment of slurmd:
PYTHON=${PYTHON:-/usr/bin/python3}                     # has the torch and triton that jobs use
GPUCHECK=${GPUCHECK:-/opt/gpucheck/gpucheck.pyz}       # from `make pyz`, or an installed gpucheck script
LIBRARY=${LIBRARY:-}                                   # --library; without it the installed one
ACCEPT=${ACCEPT:-}                                     # --accept: a file from `gpucheck accept`; empty: none
SCENARIO=${SCENARIO:-quick}
SECONDS_LIMIT=${SECONDS_LIMIT:-45}                     # for the run; starting and reporting take a few more
ON_INCONCLUSIVE=${ON_INCONCLUSIVE:-refuse}             # refuse or accept: no verdict in time, or no GPU found
STATE=${STATE:-/var/lib/gpucheck}                      # caches and the runs that did not pass; root's alone

set -u
export PATH=${PATH:+$PATH:}/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin  # slurmd may set none

gpus=${SLURM_JOB_GPUS:-}
[ -n "$gpus" ] || exit 0  # a job without GPUs

umask 077
mkdir -p "$STATE/runs" || exit 1
export GPUCHECK_CACHE_DIR=$STATE/cache TRITON_CACHE_DIR=$STATE/triton
export CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=$gpus
count=$(printf '%s\n' "$gpus" | tr ',' '\n' | grep -c .)
run=$STATE/runs/job-${SLURM_JOB_ID:-none}-$(date +%s)-$$

timeout 58 "$PYTHON" "$GPUCHECK" run "$SCENARIO" --device cuda --expect-gpus "$count" --timeout "$SECONDS_LIMIT" \
    ${LIBRARY:+--library "$LIBRARY"} ${ACCEPT:+--accept "$ACCEPT"} --out "$run" > "$run.txt" 2>&1
code=$?
[ "$code" -ne 124 ] || code=3 # ended from here: no verdict in time

if [ "$code" -eq 0 ]; then
    rm -rf "$run" "$run.txt"
    exit 0
fi
logger -t gpucheck "job ${SLURM_JOB_ID:-none}, GPUs $gpus: exit code $code, see $run.txt"
[ "$code" -eq 3 ] && [ "$ON_INCONCLUSIVE" = accept ] && exit 0
exit "$code"
