#!/bin/bash
# The gate on all GPUs of several nodes without a scheduler: start it on every node, as one would torchrun.
#
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=node-a OUT=run-7 ./torchrun.sh [further options of gpucheck run]
#   NNODES=2 NODE_RANK=1 MASTER_ADDR=node-a OUT=run-7 ./torchrun.sh
#
# Of --accept FILE, with faults from `gpucheck accept`, node 0 reads the file and no other node.
#
# Set in the environment, as torchrun's users do:
NNODES=${NNODES:?number of nodes}
NODE_RANK=${NODE_RANK:?number of this node, from 0}
MASTER_ADDR=${MASTER_ADDR:?name or address of node 0}
MASTER_PORT=${MASTER_PORT:-29500}                      # free on node 0, as is the one after it, which takes the records
OUT=${OUT:?the run folder, new; node 0 has the report in it, be it shared or not}
PYTHON=${PYTHON:-python3}                              # has the torch and triton to test
GPUCHECK=${GPUCHECK:-$HOME/gpucheck.pyz}               # from `make pyz`, or an installed gpucheck script
SCENARIO=${SCENARIO:-gate}
GPUS=${GPUS:-}                                         # how many each node has; empty: any number

# Node 0 shows the report and ends with the exit code of the run: 0 PASS, 1 FAIL, 3 inconclusive.
set -u
exec "$PYTHON" "$GPUCHECK" run "$SCENARIO" --device cuda ${GPUS:+--expect-gpus "$GPUS"} \
    --out "$OUT" --nnodes "$NNODES" --node-rank "$NODE_RANK" \
    --rdzv-endpoint "$MASTER_ADDR:$MASTER_PORT" "$@"
