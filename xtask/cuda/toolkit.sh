#!/usr/bin/env bash
# toolkit.sh DIR: a toolkit that builds the feature `cuda` on an x86-64 Linux machine without CUDA (candle's own
# kernels for compute capability 9.0): NVIDIA's compiler from Python wheels (271 MB on the disk), and libraries to link with, of which
# nothing is used, since the program opens CUDA's libraries when it runs. Needs python3 with pip, and a C and
# a C++ compiler. May be run again.
set -euo pipefail
dir=$1
pins="nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88
      nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85"
home=$dir/nvidia/cu13
mkdir -p "$dir"

# The wheels share one folder, which becomes CUDA_HOME. --platform takes those for Linux on x86-64 whatever
# this Python is.
if [ "$(cat "$dir/pins" 2>/dev/null)" != "$pins" ]; then
  rm -rf "$dir/nvidia" "$dir"/nvidia_*.dist-info "$dir/pins"
  # shellcheck disable=SC2086
  python3 -m pip install -q --disable-pip-version-check --no-deps --no-compile --only-binary=:all: \
    --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
    --platform manylinux_2_12_x86_64 --platform manylinux2010_x86_64 --target "$dir" $pins
  echo "$pins" >"$dir/pins"
fi
ln -sfn lib "$home/lib64"
# candle links CUDA's runtime: the static one, so that it need not be there later.
ln -sfn libcudart_static.a "$home/lib/libcudart.a"

mkdir -p "$home/lib/stubs"
empty=$(mktemp -d)
trap 'rm -rf "$empty"' EXIT
echo 'typedef int unused;' >"$empty/empty.c"
for library in cuda nvrtc curand cublas cublasLt cudnn; do
  cc -shared -fPIC "$empty/empty.c" -o "$home/lib/stubs/lib$library.so"
done

# candle's quantised and mixture-of-experts kernels take minutes each, and this project never calls them: the
# stub takes their place, the compiler does the rest.
cp "$(dirname "$0")/nvcc-stub.sh" "$home/bin/nvcc-stub"
cat >"$home/bin/nvcc-lite" <<'END'
#!/usr/bin/env bash
here=$(dirname "$(readlink -f "$0")")
for a in "$@"; do
  case $a in src/mmq_gguf/*.cu | src/moe/*.cu | src/mmvq_gguf.cu) exec "$here/nvcc-stub" "$@" ;; esac
done
exec "$here/nvcc" "$@"
END
chmod +x "$home/bin/nvcc-stub" "$home/bin/nvcc-lite"
"$home/bin/nvcc" --version | grep release
