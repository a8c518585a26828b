#!/bin/bash
# A Slurm HealthCheckProgram that drains a node whose GPUs compute wrong.
#
# Install it on every node, and in slurm.conf:
#   HealthCheckProgram=/etc/slurm/gpucheck-health.sh
#   HealthCheckInterval=3600
#   HealthCheckNodeState=IDLE,CYCLE
# Slurm kills it after 60 s; whatever hangs, it ends before. Nodes with processes on their GPUs are left alone.
#
# Set here or in the environment of slurmd:
PYTHON=${PYTHON:-/usr/bin/python3}                     # has the torch and triton that jobs use
GPUCHECK=${GPUCHECK:-/opt/gpucheck/gpucheck.pyz}       # from `make pyz`, or an installed gpucheck script
LIBRARY=${LIBRARY:-}                                   # --library; without it the installed one
ACCEPT=${ACCEPT:-}                                     # --accept: a file from `gpucheck accept`; empty: none
SCENARIO=${SCENARIO:-quick}
GPUS=${GPUS:-}                                         # how many a healthy node has; empty: any number
SECONDS_LIMIT=${SECONDS_LIMIT:-40}                     # for the run, at most; starting and reporting take a few more
STATE=${STATE:-/var/lib/gpucheck}                      # caches, runs that did not pass, the verdict; root's alone
PCI=${PCI:-/sys/bus/pci/devices}                       # tells whether the node has GPUs where nvidia-smi is missing

set -u
export PATH=${PATH:+$PATH:}/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin  # slurmd may set none

node=${SLURMD_NODENAME:-$(hostname -s)}
left() {
    echo $((52 - SECONDS)) # of the 60 s, without what it takes to drain
}
drain() {
    timeout -k 1 5 scontrol update NodeName="$node" State=DRAIN Reason="gpucheck: $1"
}
if ! command -v nvidia-smi > /dev/null; then
    [ -n "$GPUS" ] || grep -qsi '^0x10de' "$PCI"/*/vendor || exit 0 # a node without GPUs
    drain "there is no nvidia-smi"
    exit 1
fi
busy=$(timeout -k 1 10 nvidia-smi --query-compute-apps=pid --format=csv,noheader)
case $? in
    0) [ -z "$busy" ] || exit 0 ;;
    *)
        drain "nvidia-smi does not answer"
        exit 1
        ;;
esac

umask 077
mkdir -p "$STATE/runs" || exit 1
export GPUCHECK_CACHE_DIR=$STATE/cache TRITON_CACHE_DIR=$STATE/triton
run=$STATE/runs/health-$(date +%s)-$$
limit=$(($(left) - 8))
[ "$limit" -le "$SECONDS_LIMIT" ] || limit=$SECONDS_LIMIT

timeout -k 1 "$(left)" "$PYTHON" "$GPUCHECK" run "$SCENARIO" --device cuda --timeout "$limit" \
    ${GPUS:+--expect-gpus "$GPUS"} ${LIBRARY:+--library "$LIBRARY"} ${ACCEPT:+--accept "$ACCEPT"} \
    --exit-codes preflight --node-verdict "$run.json" --out "$run" > "$run.txt" 2>&1
code=$?
if [ -s "$run.json" ]; then
    reason=$(sed -n 's/^ "reason": "\(.*\)",$/\1/p' "$run.json" | head -n 1)
    mv -f "$run.json" "$STATE/node-verdict.json"
elif [ "$code" -eq 1 ]; then
    code=2 # a Python without what gpucheck needs, say: that is no verdict
fi

case $code in
    0)
        rm -rf "$run" "$run.txt"
        exit 0
        ;;
    1)
        drain "$reason, see $run.txt"
        ;;
    2)
        fewer=$(grep -m 1 -o -e '--expect-gpus .*' "$run.txt") && drain "$fewer"
        ;;
esac
logger -t gpucheck "health check: exit code $code, see $run.txt"
exit "$code"
