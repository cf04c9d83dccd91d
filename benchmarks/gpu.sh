#!/usr/bin/env bash
# Every GPU table of benchmarks/README.md, on a machine with one GPU. Meant to take less than nine minutes; an item that takes
# more than 150 seconds is stopped.
#   bash benchmarks/gpu.sh RESULTS [DATA_DIR]     DATA_DIR holds CIFAR-10; without it images are made up
#   python benchmarks/fill.py RESULTS             puts the tables into the README
# NERN_BENCH_TINY=1 goes through all of it at tiny sizes, also on a CPU. PYTHON names another interpreter.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1?the folder for the results}
data=${2:-}
# shellcheck source=benchmarks/common.sh
source "$root/benchmarks/common.sh"
LIMIT=150 # seconds for each, so that one that hangs leaves time for the others

made_up=(--task.use_random_data true --evaluation.test_images 0)
images=("${made_up[@]}")
[ -z "$data" ] || images=()
resnet20=(--config_path experiments/resnet20/cifar10/cifar10_resnet20_smoothpes_permute_crossfilter_140.yaml
  --original_model_path pretrained:resnet20-cifar10 --num_gpus 1)
resnet56=(--config_path experiments/resnet56/cifar10/cifar10_resnet56_smoothpes_permute_crossfilter_360.yaml
  --original_model_path null --num_gpus 1)
# an ordering has no part in the time of a step; this network's takes longest
resnet18=(--config_path experiments/resnet18/imagenet/imagenet_resnet18_smoothpes_permute_crossfilter_1256.yaml
  --original_model_path null --num_gpus 1 --nern.embeddings.permutations.permute_mode none)
precisions=(float32 tf32 bf16)
if [ -n "$tiny" ]; then
  precisions=(float32 bf16)
  resnet20+=("${small[@]}" "${small_network[@]}")
  resnet56+=("${small[@]}" "${small_network[@]}")
  resnet18=("${resnet20[@]}")
  steps=(--most_steps 1)
fi
resnet20+=("${images[@]}")
resnet56+=("${images[@]}")
resnet18+=("${made_up[@]}")

bench gpu-step-resnet20 step "${resnet20[@]}" --precisions "${precisions[@]}" ${tiny:+"${steps[@]}"}
bench gpu-step-resnet56 step "${resnet56[@]}" --precisions "${precisions[@]}" ${tiny:+"${steps[@]}"}
bench gpu-step-resnet18 step "${resnet18[@]}" --precisions "${precisions[@]}" ${tiny:+"${steps[@]}"} --repeats 5
bench gpu-reconstruct-resnet18 reconstruct "${resnet18[@]}"
finish
