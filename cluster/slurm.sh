#!/usr/bin/env bash
# A sweep in an allocation of Slurm, from the checkout, whose .venv all nodes see:
#
#     sbatch cluster/slurm.sh sweeps/salun.py --storage DIRECTORY-THAT-ALL-NODES-SEE
#
# A job that Slurm requeues goes on where it was.
#SBATCH --job-name=raymu
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

umask 077 # what this job writes is its user's alone, the token first of all
cd "$SLURM_SUBMIT_DIR"
export PATH=$PWD/.venv/bin:$PATH RAY_AUTH_MODE=token
ray get-auth-token --generate > /dev/null # in ~/.ray, which all nodes see

# This script runs on the first node. Several jobs may share it, each with a port and a directory of its own.
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000))
RAY_ADDRESS=$(getent ahostsv4 "$head" | awk '{ print $1; exit }'):$port
export RAY_ADDRESS

trap 'kill $(jobs -p) 2> /dev/null || true; wait' EXIT
steps=()
# Waits for a process, but not for nodes on which Ray ended or hangs: they would be held until --time.
await() {
    local deadline=$((SECONDS + 300)) step
    while kill -0 "$1" 2> /dev/null; do
        for step in "${steps[@]}"; do
            kill -0 "$step" 2> /dev/null || give_up "Ray has ended on a node"
        done
        ((SECONDS < deadline)) || give_up "Ray has not started on all nodes within five minutes"
        sleep 1
    done
    wait "$1"
}
give_up() {
    echo "slurm.sh: $1, so there is no sweep" >&2
    exit 1
}

srun --nodes=1 --ntasks=1 --nodelist="$head" ray start --block --head --node-ip-address="${RAY_ADDRESS%:*}" \
    --port="$port" --temp-dir="/tmp/raymu-$SLURM_JOB_ID/ray" --num-cpus="$SLURM_CPUS_PER_TASK" \
    --include-dashboard=false > /dev/null &
steps+=($!)
until ray health-check &> /dev/null; do sleep 1; done &
await $!

others=$((SLURM_JOB_NUM_NODES - 1))
if ((others > 0)); then
    srun --nodes="$others" --ntasks="$others" --exclude="$head" ray start --block --address="$RAY_ADDRESS" \
        --num-cpus="$SLURM_CPUS_PER_TASK" > /dev/null &
    steps+=($!)
fi
python -c "import raymu, ray, time; ray.init(log_to_driver=False)
while sum(node['Alive'] for node in ray.nodes()) < $SLURM_JOB_NUM_NODES: time.sleep(1)" &
await $!

python "$@" --resume
