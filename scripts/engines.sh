#!/usr/bin/env bash
# Builds the environments that hold real inference engines, for the tests marked `engine` and for
# the demo. Built once, kept in ${XDG_CACHE_HOME:-~/.cache}/wattledger.
#
# usage: scripts/engines.sh [ENGINE]         build what is missing; the last line is ENGINE's path
#        scripts/engines.sh --path [ENGINE]  print that path, build nothing
#
# ENGINE is llama (llama-cpp-python: a python), llama-server (a binary), vllm (a python) or, when
# building, all. Without ENGINE, --path tells llama's and the rest builds all.
#
# wattledger itself is installed in none of them, on purpose: attaching must not need it.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
. "$here/engines/common.sh"
. "$here/engines/llama.sh"
. "$here/engines/vllm.sh"

# Sets `names` to the engines that the word stands for.
choose() {
  case $1 in
    llama | llama-server | vllm) names=("$1") ;;
    all) names=(llama llama-server vllm) ;;
    *) say "unknown engine '$1': use llama, llama-server, vllm or all"; exit 2 ;;
  esac
}

path_of() { "path_of_${1//-/_}"; }

if [ "${1:-}" = --path ]; then
  choose "${2:-llama}"
  [ "${#names[@]}" = 1 ] || { say "--path is for one engine"; exit 2; }
  path_of "${names[0]}"
  exit 0
fi

choose "${1:-all}"
mkdir -p "$cache"
exec 9>"$cache/engines.lock"
flock -n 9 || { say "another run is building: waiting for it"; flock 9; }
for name in "${names[@]}"; do
  "build_${name//-/_}"
  say "$name is ready"
done
path_of "${names[-1]}"
