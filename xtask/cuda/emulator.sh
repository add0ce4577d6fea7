#!/usr/bin/env bash
# stub.sh DIR KERNELS: what building with the feature `cuda` needs where there is no CUDA, and an emulated GPU to
# run the result on, from a C compiler alone. KERNELS is the folder of kernels.cu.
#   DIR/bin/nvcc             stands in for nvcc
#   DIR/lib64                libraries to link with; nothing of them is used
#   DIR/emulator             libraries that are opened at run time: put it into LD_LIBRARY_PATH
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=$1 kernels=$2
mkdir -p "$dir"/{bin,include,lib64/stubs,emulator}
# A changed compiler makes cargo build candle's kernels again.
cmp -s "$here/nvcc-stub.sh" "$dir/bin/nvcc" || cp "$here/nvcc-stub.sh" "$dir/bin/nvcc"
chmod +x "$dir/bin/nvcc"

libraries="cuda nvrtc curand cublas cublasLt cudnn"
empty=$(mktemp -d)
trap 'rm -rf "$empty"' EXIT
echo 'typedef int unused;' >"$empty/empty.c"
cc -c "$empty/empty.c" -o "$empty/empty.o"
ar rcs "$dir/lib64/libcudart.a" "$empty/empty.o"
for library in $libraries; do
  cc -shared -fPIC "$empty/empty.c" -o "$dir/lib64/stubs/lib$library.so"
done

flags=(-std=gnu11 -fPIC -Wall -Werror -Wno-unused-parameter "-I$here/emulator" "-I$kernels")
for program in "f32_4 -DPACK=4" "f32_1 -DPACK=1" "bf16_8 -DBF16 -DPACK=8" "bf16_1 -DBF16 -DPACK=1"; do
  read -r name defines <<<"$program"
  # shellcheck disable=SC2086
  cc "${flags[@]}" -O2 -ffp-contract=off $defines "-DVARIANT=$name" -c "$here/emulator/kernels.c" -o "$empty/$name.o"
done
cc "${flags[@]}" -O2 -c "$here/emulator/driver.c" -o "$empty/driver.o"
cc "${flags[@]}" -O3 -ffast-math -c "$here/emulator/libraries.c" -o "$empty/libraries.o"
cc -shared "$empty"/{f32_4,f32_1,bf16_8,bf16_1,driver,libraries}.o -lm -lpthread -o "$dir/emulator/libcuda.so"
for library in $libraries; do
  [ "$library" = cuda ] || ln -sf libcuda.so "$dir/emulator/lib$library.so"
done
