#!/usr/bin/env bash
# run.sh OUT: the first checks of an NVIDIA GPU, with the programs in this folder. Each result is written to
# the empty folder OUT as it comes, one line for each step to OUT/summary.txt. Stops by itself in less than nine minutes. The
# libraries of CUDA are those in LD_LIBRARY_PATH, and then those in the packages of PYTHON (python3; PyTorch's wheels bring
# them), whose PyTorch is measured in turn.
# With QUICK=1, the smallest network in the smallest batches, in a minute: to see that driver, libraries and programs fit.
set -uo pipefail
out=${1:?usage: [QUICK=1] [PYTHON=python3] run.sh OUT}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 1
if [ -n "$(ls -A "$out")" ]; then
  echo "$out is not empty" >&2
  exit 2
fi
deadline=510
failures=0
quick=${QUICK:-}
python=${PYTHON:-python3}

# Ctrl-C ends the step that is running, too, which has a process group of its own.
child=
trap '[ -z "$child" ] || kill "$child"; wait; exit 130' INT TERM

wheels=$(timeout 20 "$python" -c 'import nvidia, glob
print(":".join(d for p in nvidia.__path__ for d in sorted(glob.glob(p + "/*/lib"))))' 2>>"$out/libraries.txt") || true
[ -z "$wheels" ] || export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:-}${LD_LIBRARY_PATH:+:}$wheels"
echo "LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}" >>"$out/libraries.txt"
timeout 20 "$python" -m pip list 2>/dev/null | grep -iE 'nvidia|torch' >>"$out/libraries.txt"

# step NAME SECONDS COMMAND...: the command's output goes to NAME.txt.
step() {
  local name=$1 limit=$2 left=$((deadline - SECONDS)) start=$SECONDS code
  shift 2
  if [ "$left" -lt 5 ]; then
    echo "$name: not run, the time is over" | tee -a "$out/summary.txt"
    failures=$((failures + 1))
    return 1
  fi
  timeout -k 5 $((limit < left ? limit : left)) "$@" >"$out/$name.txt" 2>&1 &
  child=$!
  wait "$child"
  code=$?
  child=
  echo "$name: exit status $code after $((SECONDS - start)) s" | tee -a "$out/summary.txt"
  if [ "$code" != 0 ]; then
    failures=$((failures + 1))
    tail -n 20 "$out/$name.txt"
  fi
  return "$code"
}

# train NAME OPTIONS...: a few steps on the synthetic data set. The first that fails is repeated with the libraries' logs.
logged=
train() {
  local name=$1
  shift
  local command=("$here/trainer" --device cuda --dataset synthetic --no-progress --run-dir "$out/runs" "$@")
  step "$name" 60 "${command[@]}" --name "$name" && return
  [ -z "$logged" ] || return
  logged=1
  CUDNN_LOGLEVEL_DBG=2 CUDNN_LOGDEST_DBG=stderr CUBLASLT_LOG_LEVEL=2 \
    step "$name-logged" 60 "${command[@]}" --name "$name-logged" --log-level debug
}

# tests CRATE NAME SECONDS FILTERS...: the tests of a crate with one of these in their names.
tests() {
  local crate=$1 name=$2 limit=$3
  shift 3
  step "$name" "$limit" "$here/$crate-devices" --include-ignored --test-threads=1 "$@"
}

# bench NAME SECONDS MODELS BATCH ENGINES OPTIONS...: training steps, in tables, and in NAME.json.
bench() {
  local name=$1 limit=$2 models=$3 batch=$4 engines=$5
  shift 5
  if [ -n "$quick" ]; then models=lenet batch=1; fi
  step "$name" "$limit" "$here/bench" --device cuda --models "$models" --batch-sizes "$batch" --engines "$engines" \
    --passes train --rounds 1 --seconds "${quick:+0.0}5" --out "$out/$name.json" "$@"
}

few=(--model small-alexnet --epochs 2 --batch-size 100 --limit-train 500 --limit-test 100)
without=()
if [ -n "$quick" ]; then
  few=(--model lenet --epochs 2 --batch-size 2 --limit-train 4 --limit-test 2)
  without=(--skip alexnet --skip runs::)
fi

if command -v nvidia-smi >/dev/null; then
  step nvidia-smi 20 nvidia-smi
fi
for precision in bf16 tf32 f32; do
  train "train-$precision" "${few[@]}" --precision "$precision"
done
for precision in bf16 tf32 f32; do
  tests ops "values-$precision-ops" 60 "cuda_$precision"
  tests engine "values-$precision-engine" 60 "cuda_$precision" --skip ends_with_the_same_bits "${without[@]}"
done
if command -v compute-sanitizer >/dev/null; then
  step memcheck 90 compute-sanitizer --tool memcheck --error-exitcode 9 "$here/trainer" --device cuda --dataset synthetic \
    --no-progress --run-dir "$out/runs" --name memcheck --model small-alexnet --epochs 1 --batch-size 8 --limit-train 32 \
    --limit-test 8
else
  echo "memcheck: not run, there is no compute-sanitizer" | tee -a "$out/summary.txt"
fi
if [ -z "$quick" ]; then
  tests engine runs 90 ends_with_the_same_bits::cuda_bf16
  bench speed-alexnet 90 alexnet 500 bf16,tf32 --no-layers
  bench speed-small-alexnet 60 small-alexnet 128 bf16 --no-layers
fi
bench layers 90 alexnet,small-alexnet 500 bf16
if "$python" -c 'import torch' 2>/dev/null; then
  bench pytorch 90 alexnet 500 bf16 --no-layers --no-compile --against-pytorch "$python"
else
  echo "pytorch: not run, $python has no PyTorch" | tee -a "$out/summary.txt"
fi
# What worked, but not as it should.
grep -hE '^ *WARN ' "$out"/*.txt | sort | uniq -c | sort -rn >"$out/warnings.txt"
echo "warnings: $(wc -l <"$out/warnings.txt"), in warnings.txt" | tee -a "$out/summary.txt"
echo "$failures steps failed or had no time; all output is in $out" | tee -a "$out/summary.txt"
[ "$failures" = 0 ]
