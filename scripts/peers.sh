#!/usr/bin/env bash
# Makes one environment per peer that wattledgerd is measured beside (`python -m benchmarks peers`):
# CodeCarbon and Zeus from PyPI, kept in ${XDG_CACHE_HOME:-~/.cache}/wattledger/peers. They are no
# dependency of wattledger and no part of `make test`.
#
# usage: scripts/peers.sh          build what is missing; the last line is their folder
#        scripts/peers.sh --path   print that folder, build nothing
set -euo pipefail

peers=("codecarbon==3.3.2" "zeus==0.16.0")
python=${PYTHON:-python3}
folder=${XDG_CACHE_HOME:-$HOME/.cache}/wattledger/peers

case ${1:-} in
  --path) echo "$folder"; exit 0 ;;
  "") ;;
  *) echo "peers: unknown argument '$1': use --path or nothing" >&2; exit 2 ;;
esac

mkdir -p "$folder"
exec 9>"$folder/lock"
flock -n 9 || { echo "peers: another run is building: waiting for it" >&2; flock 9; }

for peer in "${peers[@]}"; do
  env=$folder/${peer%%==*}
  stamp="$peer $("$python" --version)"
  # Written last: an interrupted or older environment is made again.
  if [ "$(cat "$env/.complete" 2>/dev/null)" = "$stamp" ]; then continue; fi
  echo "peers: installing $peer: some 300 MB, this one time" >&2
  rm -rf "$env"
  "$python" -m venv "$env"
  "$env/bin/pip" install --quiet --disable-pip-version-check "$peer" >"$folder/build.log" 2>&1 \
    || { tail -n 20 "$folder/build.log" >&2; echo "peers: cannot install $peer" >&2; exit 1; }
  echo "$stamp" >"$env/.complete"
done
echo "$folder"
