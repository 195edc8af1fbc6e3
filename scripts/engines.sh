#!/usr/bin/env bash
# Builds the environment that holds a real inference engine (llama-cpp-python with its server), for
# the tests marked `engine` and for the demo. Built once, kept in ${XDG_CACHE_HOME:-~/.cache}/wattledger.
#
# usage: scripts/engines.sh          build what is missing; the last line is the environment's python
#        scripts/engines.sh --path   print that python, build nothing
#
# wattledger itself is not installed there, on purpose: attaching must not need it.
set -euo pipefail

version=0.3.36
packages=("gguf==0.19.0" "grpcio>=1.71.2" "protobuf>=5.29.6")
python=${PYTHON:-python3}
here=$(cd "$(dirname "$0")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/wattledger
env=$cache/engine-llama-$version
wheels=$cache/wheels
log=$cache/engine-build.log

case ${1:-} in
  --path) echo "$env/bin/python"; exit 0 ;;
  "") ;;
  *) echo "engines: unknown argument '$1': use --path or nothing" >&2; exit 2 ;;
esac

say() { echo "engines: $*" >&2; }
fail() { say "$*"; exit 1; }

# Runs a command with its output in the log, and says every 10 s how far it is.
with_progress() {
  local what=$1 start=$SECONDS pid
  shift
  "$@" >"$log" 2>&1 &
  pid=$!
  trap 'kill "$pid" 2>/dev/null || true' EXIT
  while kill -0 "$pid" 2>/dev/null; do
    if (((SECONDS - start) % 10 == 9)); then
      say "$what: $((SECONDS - start)) s $(grep -oE '\[[0-9]+/[0-9]+\]' "$log" | tail -n 1 || true)"
    fi
    sleep 1
  done
  trap - EXIT
  wait "$pid" || { tail -n 20 "$log" >&2; fail "$what failed; the whole log is $log"; }
  say "$what: done in $((SECONDS - start)) s"
}

need_compiler() {
  if command -v c++ >/dev/null; then return; fi
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "no C++ compiler: installing g++"
    (apt-get update -qq && apt-get install -y -qq g++) >"$log" 2>&1 || fail "apt-get failed; see $log"
  else
    fail "no C++ compiler; run: sudo apt-get install -y g++"
  fi
}

# Few targets, -O1 and no -march=native: quick to build and the wheel runs on any machine of this
# kind, but it decodes at about half the speed of a plain `pip install`. Fine for tests, not a benchmark.
build_wheel() {
  need_compiler
  say "building llama-cpp-python $version from source: about 3-5 minutes, this one time"
  local tools=$cache/build-env out=$cache/wheel.partial
  [ -d "$tools" ] || "$python" -m venv "$tools"
  # Debian 12's pip knows no -C yet.
  "$tools/bin/pip" install --quiet "pip>=23.1" "scikit-build-core[pyproject]>=0.10" cmake ninja \
    >"$log" 2>&1 || fail "cannot install cmake and ninja; see $log"
  rm -rf "$out"
  PATH="$tools/bin:$PATH" CMAKE_ARGS="-DLLAVA_BUILD=OFF -DGGML_NATIVE=OFF -DGGML_OPENMP=OFF \
-DCMAKE_CXX_FLAGS_RELEASE=-O1 -DCMAKE_PROJECT_llama_cpp_INCLUDE=$here/llama_unity.cmake" \
    with_progress "compiling" "$tools/bin/pip" wheel --verbose --no-deps --no-build-isolation \
    --no-cache-dir --no-binary llama-cpp-python --wheel-dir "$out" \
    "-Cbuild.targets=llama;llama-common" "llama-cpp-python==$version"
  mkdir -p "$wheels"
  mv "$out"/*.whl "$wheels/"
  rmdir "$out"
}

find_wheel() { find "$wheels" -name "llama_cpp_python-$version-*_$(uname -m).whl" 2>/dev/null | head -n 1; }

mkdir -p "$cache"
exec 9>"$cache/engines.lock"
flock -n 9 || { say "another run is building: waiting for it"; flock 9; }

# The stamp is written last and says what was built: an interrupted or older build is made again.
stamp="llama-cpp-python==$version ${packages[*]} $("$python" --version)"
if [ "$(cat "$env/.complete" 2>/dev/null)" != "$stamp" ]; then
  [ -n "$(find_wheel)" ] || build_wheel
  rm -rf "$env"
  "$python" -m venv "$env"
  with_progress "installing the engine" "$env/bin/pip" install "$(find_wheel)[server]" "${packages[@]}"
  "$env/bin/python" -c 'import llama_cpp.server.app, gguf, grpc, google.protobuf' >"$log" 2>&1 \
    || { tail -n 20 "$log" >&2; fail "the built engine does not import; see $log"; }
  echo "$stamp" >"$env/.complete"
fi
say "ready"
echo "$env/bin/python"
