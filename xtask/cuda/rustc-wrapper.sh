#!/bin/sh
# rustc, which builds CUDA's bindings (the crate cudarc) so that they open CUDA's libraries when the program runs. candle asks
# for its feature `dynamic-linking`, and its build script refuses `dynamic-loading` beside that. As a compiler flag it reaches
# the bindings alone. Without the libraries that they would be linked with, the build needs no CUDA.
case " $* " in *' --crate-name cudarc '*) ;; *) exec "$@" ;; esac
count=$#
while [ "$count" -gt 0 ]; do
  case $1 in
    -l) shift && count=$((count - 1)) ;;
    *) set -- "$@" "$1" ;;
  esac
  shift && count=$((count - 1))
done
exec "$@" --cfg 'feature="dynamic-loading"'
