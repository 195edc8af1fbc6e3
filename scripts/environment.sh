#!/usr/bin/env bash
# Makes .venv with wattledger and the extras named, installing Debian's own packages where they are
# missing: python3-venv, and a C++ compiler for the engine and the fake driver library of the tests.
#
# usage: scripts/environment.sh EXTRAS      e.g. "daemon,cli" or "dev"
set -euo pipefail

extras=$1
root=$(cd "$(dirname "$0")/.." && pwd)
env=$root/.venv
stamp=$env/.wattledger-$extras
python=${PYTHON:-python3}

fail() { echo "environment: $*" >&2; exit 1; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
  || fail "'$python' is not Python 3.11 or newer; set PYTHON=/path/to/python3.11"

missing=()
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=("python3-venv")
command -v cc >/dev/null && command -v c++ >/dev/null || missing+=("build-essential")
if [ "${#missing[@]}" -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "environment: installing ${missing[*]}" >&2
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}"; } \
      >/dev/null || fail "apt-get could not install ${missing[*]}"
  else
    fail "missing system packages; run: sudo apt-get install -y ${missing[*]}"
  fi
fi

if [ "$(cat "$stamp" 2>/dev/null)" = "$(cksum <"$root/pyproject.toml")" ]; then exit 0; fi
[ -x "$env/bin/python" ] || "$python" -m venv "$env"
echo "environment: installing wattledger[$extras] into .venv" >&2
"$env/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$root[$extras]" \
  || fail "pip could not install wattledger[$extras]; see its words above"
cksum <"$root/pyproject.toml" >"$stamp"
