#!/usr/bin/env bash
# Stands in for nvcc where there is no CUDA, so that candle's CUDA crates compile and link: PTX files are
# empty, and the entry points of candle's quantised and mixture-of-experts kernels, which this project
# never calls, end the process with a message. Kernels of our own are compiled at run time, not by this.
set -euo pipefail
out= dir=. src= ptx= prev= objects=()
for a in "$@"; do
  case $prev in -o) out=$a ;; --output-directory) dir=$a ;; esac
  case $a in
    --version) echo 'Cuda compilation tools, release 13.0, V13.0.88'; exit ;;
    --ptx) ptx=1 ;;
    *.cu) src=$a ;;
    *.o) [ "$prev" = -o ] || objects+=("$a") ;;
  esac
  prev=$a
done
if [ -n "$ptx" ]; then
  : >"$dir/$(basename "$src" .cu).ptx"
elif [ -z "$src" ]; then # The objects are gathered into a library.
  ar rcs "$out" "${objects[@]}"
elif [ "$(basename "$src")" = mmvq_gguf.cu ]; then
  {
    echo '#include <stdio.h>
#include <stdlib.h>
static void missing(const char *f) { fprintf(stderr, "%s: built without nvcc\n", f); abort(); }'
    # cudaforge runs this in the crate's own folder.
    grep -oE '\bfn [A-Za-z0-9_]+' src/ffi.rs | sed 's/fn //' | sort -u | sed 's/.*/void &(void) { missing("&"); }/'
  } | cc -c -fPIC -x c - -o "$out"
else
  echo 'typedef int unused;' | cc -c -fPIC -x c - -o "$out"
fi
