# Shared by cpu.sh and gpu.sh: a working folder in which the commands need no paths of this machine, and `bench`.
# Wants: root (the repository), out (folder of the results), data (folder of CIFAR-10, or empty).
PYTHON=${PYTHON:-python3}
export PYTHONPATH="$root/src${PYTHONPATH:+:$PYTHONPATH}" COLUMNS=${COLUMNS:-150}
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export NERN_CACHE_DIR=${NERN_CACHE_DIR:-$work/cache}
ln -s "$root/experiments" "$work/experiments"
[ -z "$data" ] || ln -s "$(cd "$data" && pwd)" "$work/data"
cd "$work"

tiny=${NERN_BENCH_TINY:-}
if [ -n "$tiny" ]; then # does every step of the way in a minute or two; its figures mean nothing
  small=(--repeats 2 --warmup 1)
  small_network=(--nern.hidden_layer_size 8 --nern.embeddings.enc_levels 2 --nern.weights_batch_size 64 --batch_size 2)
  small_network+=(--evaluation.held_out_images 4 --evaluation.batch_size 4 --evaluation.test_images 4)
fi

failed=()
bench() { # NAME KIND [options]: writes NAME.json
  local name=$1
  shift
  [[ -z ${NERN_BENCH_ONLY:-} || " $NERN_BENCH_ONLY " == *" $name "* ]] || return 0
  echo "--- $name ($SECONDS s)"
  if ! timeout "${LIMIT:-3600}" "$PYTHON" -m nern bench "$@" --json "$name.json"; then
    failed+=("$name")
    return 0
  fi
  mv "$name.json" "$out/"
  [ ! -f "$name.png" ] || mv "$name.png" "$out/"
}

finish() {
  echo "--- done ($SECONDS s); results in $out"
  [ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
}
