#!/usr/bin/env bash
# Builds llama.cpp for CPUs into a folder, for tests: the wheel of llama-cpp-python, and its own `llama-perplexity`.
#
#   tools/make_llamacpp.sh VERSION DIR PYTHON
#
# VERSION is of llama-cpp-python, whose source package holds llama.cpp; PYTHON needs pip. DIR gets the wheel, for any
# Python 3, and bin/llama-perplexity. Running it again on a folder that has both changes nothing.
set -euo pipefail

fail() { echo "make_llamacpp.sh: $*" >&2; exit 2; }

[ $# -eq 3 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
version=$1 dir=$(realpath -m "$2") python=$3 cxx=${CXX:-g++}

# Checkouts that share a folder wait for the one that makes it.
mkdir -p "$dir"
exec 9>"$dir/.making"
flock 9
[ ! -x "$dir/bin/llama-perplexity" ] || exit 0

command -v "$cxx" >/dev/null || fail "llama.cpp is compiled, and there is no $cxx to do it; install a C++ compiler" \
  "(Debian, Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++)"

echo "compiling llama.cpp of llama-cpp-python $version into $dir (once: about 7 minutes on two cores)"
scratch=$dir/.scratch log=$dir/build.log
rm -rf "$scratch" "$dir"/*.whl
mkdir "$scratch"
trap 'rm -rf "$scratch"' EXIT

logged() { # logged COMMAND...
  "$@" >>"$log" 2>&1 || fail "llama-cpp-python $version could not be compiled; the end of $log:"$'\n'"$(tail -n 15 "$log")"
}

: >"$log"
logged "$python" -m pip download --no-deps --no-binary llama-cpp-python --dest "$scratch" "llama-cpp-python==$version"
mkdir "$scratch/source"
tar -xzf "$scratch"/*.tar.gz -C "$scratch/source" --strip-components 1

# Not for this very processor (AVX2 is enough): a home folder may travel between machines.
export CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF -DLLAMA_OPENSSL=OFF"
export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}
logged "$python" -m pip wheel --no-deps --wheel-dir "$scratch" -C build-dir="$scratch/build" "$scratch/source"

# The wheel leaves llama.cpp's programs out; this one is two files more than it compiles anyway.
llama=$scratch/source/vendor/llama.cpp
mkdir "$scratch/bin"
cp -a "$scratch"/build/bin/lib*.so* "$scratch/bin"
logged "$cxx" -std=c++17 -O2 -pthread -I"$llama"/{common,include,ggml/include,vendor} \
  "$llama"/tools/perplexity/{perplexity,main}.cpp -o "$scratch/bin/llama-perplexity" \
  -L"$scratch/bin" -Wl,--no-as-needed,-rpath,'$ORIGIN' -lllama-common -lllama -lggml -lggml-cpu -lggml-base
logged "$scratch/bin/llama-perplexity" --version

mv "$scratch"/*.whl "$dir"
rm -rf "$dir/bin"
mv "$scratch/bin" "$dir/bin"
echo "llama.cpp is in place"
