#!/usr/bin/env bash
# Every CPU table of benchmarks/README.md and docs/speed.md.
#   bash benchmarks/cpu.sh DATA_DIR [RESULTS]     DATA_DIR holds CIFAR-10; RESULTS: default outputs/benchmarks
#   python benchmarks/fill.py RESULTS             puts the tables into these pages
# NERN_BENCH_ONLY="NAME NAME" makes these alone. NERN_BENCH_TINY=1 goes through all of it at tiny sizes.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
data=${1?the folder that holds CIFAR-10}
out=${2:-$root/outputs/benchmarks}
# shellcheck source=benchmarks/common.sh
source "$root/benchmarks/common.sh"

resnet20=(--config_path experiments/resnet20/cifar10/cifar10_resnet20_smoothpes_permute_crossfilter_140.yaml
  --original_model_path pretrained:resnet20-cifar10 --num_gpus 0)
resnet56=(--config_path experiments/resnet56/cifar10/cifar10_resnet56_smoothpes_permute_crossfilter_360.yaml
  --original_model_path null --num_gpus 0)
resnet18=(--config_path experiments/resnet18/imagenet/imagenet_resnet18_smoothpes_permute_crossfilter_1256.yaml
  --original_model_path null --num_gpus 0)
few=(--repeats 3 --warmup 1)
largest=1e8
kernels=${tiny:+600}
if [ -n "$tiny" ]; then
  resnet20+=("${small[@]}" "${small_network[@]}")
  resnet56+=("${small[@]}" "${small_network[@]}")
  resnet18=("${resnet20[@]}")
  few=("${small[@]}" --threads 1)
  largest=1e5
  steps=1
  improve=0.1
fi

bench order-resnet20 order "${resnet20[@]}" ${tiny:+--kernels 500}
bench order-resnet18 order "${resnet18[@]}" "${few[@]}" --kernels "${kernels:-65536}"
bench order-improved order "${resnet20[@]}" "${few[@]}" ${tiny:+--kernels 500} \
  --nern.embeddings.permutations.improve_seconds "${improve:-10}"
bench step-digits step --precisions float32 bf16 ${tiny:+--most_steps 1 "${small[@]}"}
bench step-resnet20 step "${resnet20[@]}" --precisions float32 bf16
bench step-resnet56 step "${resnet56[@]}" "${few[@]}" --precisions float32 bf16
bench reconstruct-resnet20 reconstruct "${resnet20[@]}"
bench reconstruct-resnet56 reconstruct "${resnet56[@]}"
bench reconstruct-resnet18 reconstruct "${resnet18[@]}" "${few[@]}"
bench scaling scaling --largest $largest --figure scaling.png --repeats 5
if [[ -z ${NERN_BENCH_ONLY:-} || " $NERN_BENCH_ONLY " == *" profile "* ]]; then
  echo "--- profile ($SECONDS s)"
  for precision in float32 bf16; do
    "$PYTHON" "$root/benchmarks/profile_step.py" "${resnet20[@]:0:2}" --weights pretrained:resnet20-cifar10 --data_dir data \
      --precision $precision --steps ${steps:-5}
    echo
  done > "$out/profile.md" || failed+=(profile)
fi
finish
