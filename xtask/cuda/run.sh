#!/usr/bin/env bash
# run.sh OUT: the first minutes of the programs beside this script on a machine with an NVIDIA GPU. Each result is written to
# the empty folder OUT as it comes, one line for each step to OUT/summary.txt. Stops by itself in less than nine minutes. The
# libraries of CUDA are those in LD_LIBRARY_PATH, and then those in the packages of python3 (PyTorch's wheels bring them).
set -uo pipefail
out=${1:?usage: run.sh OUT}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 1
if [ -n "$(ls -A "$out")" ]; then
  echo "$out is not empty" >&2
  exit 2
fi
deadline=510
failures=0

wheels=$(timeout 20 python3 -c 'import nvidia, glob
print(":".join(d for p in nvidia.__path__ for d in sorted(glob.glob(p + "/*/lib"))))' 2>>"$out/libraries.txt") || true
export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:-}${LD_LIBRARY_PATH:+:}$wheels"
echo "LD_LIBRARY_PATH=$LD_LIBRARY_PATH" >>"$out/libraries.txt"
timeout 20 python3 -m pip list 2>/dev/null | grep -iE 'nvidia|torch' >>"$out/libraries.txt"

# step NAME SECONDS COMMAND...: the command's output goes to NAME.txt.
step() {
  local name=$1 limit=$2 left=$((deadline - SECONDS)) start=$SECONDS code
  shift 2
  if [ "$left" -lt 5 ]; then
    echo "$name: not run, the time is over" | tee -a "$out/summary.txt"
    failures=$((failures + 1))
    return 1
  fi
  timeout -k 5 $((limit < left ? limit : left)) "$@" >"$out/$name.txt" 2>&1
  code=$?
  echo "$name: exit status $code after $((SECONDS - start)) s" | tee -a "$out/summary.txt"
  [ "$code" = 0 ] || failures=$((failures + 1))
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

if command -v nvidia-smi >/dev/null; then
  step nvidia-smi 20 nvidia-smi
fi
for precision in bf16 tf32 f32; do
  train "train-$precision" --model small-alexnet --epochs 2 --batch-size 100 --limit-train 500 --limit-test 100 \
    --precision "$precision"
done
for precision in bf16 tf32 f32; do
  step "values-$precision" 60 "$here/bench" gpu-check --only values --precisions "$precision" --out "$out/values-$precision.json"
done
if command -v compute-sanitizer >/dev/null; then
  step memcheck 90 compute-sanitizer --tool memcheck --error-exitcode 9 "$here/trainer" --device cuda --dataset synthetic \
    --no-progress --run-dir "$out/runs" --name memcheck --model small-alexnet --epochs 1 --batch-size 8 --limit-train 16 \
    --limit-test 8
else
  echo "memcheck: not run, there is no compute-sanitizer" | tee -a "$out/summary.txt"
fi
step runs 90 "$here/bench" gpu-check --only runs --precisions bf16 --run-dir "$out/runs" --out "$out/runs.json"
for case in "alexnet 500 bf16" "alexnet 500 tf32" "small-alexnet 128 bf16"; do
  read -r model batch precision <<<"$case"
  step "speed-$model-$batch-$precision" 30 "$here/bench" gpu-measure --what training --model "$model" \
    --batch-size "$batch" --precision "$precision"
done
for model in alexnet small-alexnet; do
  step "layers-$model" 30 "$here/bench" gpu-measure --what layers --model "$model" --batch-size 500 --precision bf16
done
step pytorch 120 "$here/bench" gpu-check --only speed --batch-sizes 500 --precisions bf16 --rounds 1 --seconds 3 \
  --out "$out/speed.json"
echo "$failures steps failed or were not run; all output is in $out" | tee -a "$out/summary.txt"
[ "$failures" = 0 ]
