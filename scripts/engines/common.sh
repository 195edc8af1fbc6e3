# Sourced by scripts/engines.sh: where things are kept, and how a long step is run and told.
# shellcheck shell=bash

python=${PYTHON:-python3}
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/wattledger
log=$cache/engine-build.log
build_tools=$cache/build-env

say() { echo "engines: $*" >&2; }
fail() { say "$*"; exit 1; }

# Runs a command with its output in the log, and says every 10 s how far it is.
with_progress() {
  local what=$1 start=$SECONDS pid
  shift
  nice "$@" >"$log" 2>&1 &
  pid=$!
  trap 'kill "$pid" 2>/dev/null || true' EXIT
  while kill -0 "$pid" 2>/dev/null; do
    if (((SECONDS - start) % 10 == 9)); then
      say "$what: $((SECONDS - start)) s $(grep -oE '\[[0-9]+/[0-9]+\]' "$log" | tail -n 1 || true)"
    fi
    sleep 1
  done
  trap - EXIT
  wait "$pid" || { tail -n 20 "$log" >&2; fail "$what failed; ${mend:-the whole log is $log}"; }
  say "$what: done in $((SECONDS - start)) s"
}

# The stamp is written last and says what was built: an interrupted or older build is made again.
is_built() { [ "$(cat "$1/.complete" 2>/dev/null)" = "$2" ]; }
mark_built() { echo "$2" >"$1/.complete"; }

need_compiler() {
  if command -v c++ >/dev/null; then return; fi
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "no C++ compiler: installing g++"
    (apt-get update -qq && apt-get install -y -qq g++) >"$log" 2>&1 || fail "apt-get failed; see $log"
  else
    fail "no C++ compiler; run: sudo apt-get install -y g++"
  fi
}

# cmake and ninja come from PyPI: a system's own may be missing or too old.
need_build_tools() {
  need_compiler
  if is_built "$build_tools" "$("$python" --version)"; then return; fi
  rm -rf "$build_tools"
  "$python" -m venv "$build_tools"
  # Debian 12's pip knows no -C yet.
  "$build_tools/bin/pip" install --quiet "pip>=23.1" "scikit-build-core[pyproject]>=0.10" cmake ninja \
    >"$log" 2>&1 || fail "cannot install cmake and ninja; see $log"
  mark_built "$build_tools" "$("$python" --version)"
}
