#!/bin/bash
# This node's ranks of a run over several nodes; slurm.sbatch and skypilot.yaml call it once on each node.
#   NODE_RANK=0 NUM_NODES=2 HEAD_NODE=10.0.0.1 launch/node.sh recipes/qwen3_1.8b/pretrain.yaml [--key=value ...]
set -euo pipefail
: "${NODE_RANK:?number of this node, from 0}" "${NUM_NODES:?nodes of the run}" "${HEAD_NODE:?address of node 0}"
recipe=${1:?give a pretrain.yaml}
shift
num_processes=$((NUM_NODES * ${PROCESSES_PER_NODE:-8}))
# The standard launcher: DeepSpeed's own would go from node to node by ssh.
exec python -m modeling_foundry.launch --config_file "${ACCELERATE_CONFIG:-accelerate_configs/zero1.yaml}" \
    --num_machines "$NUM_NODES" --num_processes "$num_processes" --machine_rank "$NODE_RANK" \
    --main_process_ip "$HEAD_NODE" --main_process_port "${PORT:-29500}" --deepspeed_multinode_launcher standard \
    recipes/pretrain.py --config "$recipe" --expected_processes="$num_processes" "$@"
