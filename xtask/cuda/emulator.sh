#!/usr/bin/env bash
# emulator.sh DIR KERNELS: an emulated GPU, built by a C compiler: libraries in DIR that are opened in place of CUDA's, if
# LD_LIBRARY_PATH names DIR. KERNELS is the folder of kernels.cu.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=$1 kernels=$2
mkdir -p "$dir"
objects=$(mktemp -d)
trap 'rm -rf "$objects"' EXIT

flags=(-std=gnu11 -fPIC -Wall -Werror -Wno-unused-parameter "-I$here/emulator" "-I$kernels")
for program in "f32_4 -DPACK=4" "f32_1 -DPACK=1" "bf16_8 -DBF16 -DPACK=8" "bf16_1 -DBF16 -DPACK=1"; do
  read -r name defines <<<"$program"
  # shellcheck disable=SC2086
  cc "${flags[@]}" -O2 -ffp-contract=off $defines "-DVARIANT=$name" -c "$here/emulator/kernels.c" -o "$objects/$name.o"
done
cc "${flags[@]}" -O2 -c "$here/emulator/driver.c" -o "$objects/driver.o"
cc "${flags[@]}" -O3 -ffast-math -c "$here/emulator/libraries.c" -o "$objects/libraries.o"
cc -shared "$objects"/*.o -lm -lpthread -o "$dir/libcuda.so"
for library in nvrtc curand cublas cublasLt cudnn; do
  ln -sf libcuda.so "$dir/lib$library.so"
done
