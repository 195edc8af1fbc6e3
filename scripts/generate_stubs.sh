#!/usr/bin/env bash
# Regenerates the committed protobuf stubs. grpcio-tools is pinned: code made by a newer protoc
# refuses to load on the older protobuf that an engine's environment may hold (5.29 is the floor).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$root/proto}
env=${XDG_CACHE_HOME:-$HOME/.cache}/wattledger/stubs-1.71.2
if [ ! -x "$env/bin/protoc-gen-mypy" ]; then
  python3 -m venv "$env"
  "$env/bin/pip" install --quiet "grpcio-tools==1.71.2" "mypy-protobuf==3.7.0" "setuptools<81"
fi
cd "$root/proto"
PATH="$env/bin:$PATH" "$env/bin/python" -W ignore -m grpc_tools.protoc --proto_path=. \
  --python_out="$out" --grpc_python_out="$out" --mypy_out="quiet:$out" --mypy_grpc_out="quiet:$out" \
  wattledger_proto/v1/collect.proto wattledger_proto/v1/node.proto
