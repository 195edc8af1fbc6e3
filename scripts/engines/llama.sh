# Sourced by scripts/engines.sh: llama-cpp-python with its server, and llama.cpp's own llama-server.
# Both are built from the one source archive on PyPI, which holds llama.cpp.
# shellcheck shell=bash

llama_version=0.3.36
llama_packages=("gguf==0.19.0" "grpcio>=1.71.2" "protobuf>=5.29.6")
llama_env=$cache/engine-llama-$llama_version
llama_server=$cache/llama-server-$llama_version
wheels=$cache/wheels

path_of_llama() { echo "$llama_env/bin/python"; }
path_of_llama_server() { echo "$llama_server/bin/llama-server"; }

find_wheel() {
  find "$wheels" -name "llama_cpp_python-$llama_version-*_$(uname -m).whl" 2>/dev/null | head -n 1
}

# Fetched once for both.
need_source() {
  need_build_tools
  source_archive=$cache/sdist/llama_cpp_python-$llama_version.tar.gz
  if [ -f "$source_archive" ]; then return; fi
  rm -rf "$cache/sdist.partial"
  PATH="$build_tools/bin:$PATH" with_progress "fetching llama-cpp-python's source" \
    "$build_tools/bin/pip" download --no-deps --no-build-isolation --no-binary llama-cpp-python \
    --dest "$cache/sdist.partial" "llama-cpp-python==$llama_version"
  mkdir -p "$cache/sdist"
  mv "$cache/sdist.partial"/*.tar.gz "$source_archive"
  rmdir "$cache/sdist.partial"
}

# Few targets, -O1 and no -march=native: quick to build and the wheel runs on any machine of this
# kind, but it decodes at about half the speed of a plain `pip install`. Fine for tests, not a benchmark.
build_wheel() {
  local out=$cache/wheel.partial
  say "building llama-cpp-python $llama_version from source: about 3-5 minutes, this one time"
  need_source
  rm -rf "$out"
  PATH="$build_tools/bin:$PATH" CMAKE_ARGS="-DLLAVA_BUILD=OFF -DGGML_NATIVE=OFF -DGGML_OPENMP=OFF \
-DCMAKE_CXX_FLAGS_RELEASE=-O1 -DCMAKE_PROJECT_llama_cpp_INCLUDE=$scripts/engines/llama_unity.cmake" \
    with_progress "compiling" "$build_tools/bin/pip" wheel --verbose --no-deps --no-build-isolation \
    --no-cache-dir --wheel-dir "$out" "-Cbuild.targets=llama;llama-common" "$source_archive"
  mkdir -p "$wheels"
  mv "$out"/*.whl "$wheels/"
  rmdir "$out"
}

build_llama() {
  local stamp
  stamp="llama-cpp-python==$llama_version ${llama_packages[*]} $("$python" --version)"
  if is_built "$llama_env" "$stamp"; then return; fi
  [ -n "$(find_wheel)" ] || build_wheel
  rm -rf "$llama_env"
  "$python" -m venv "$llama_env"
  with_progress "installing llama-cpp-python" \
    "$llama_env/bin/pip" install "$(find_wheel)[server]" "${llama_packages[@]}"
  "$llama_env/bin/python" -c 'import llama_cpp.server.app, gguf, grpc, google.protobuf' >"$log" 2>&1 \
    || { tail -n 20 "$log" >&2; fail "the built llama-cpp-python does not import; see $log"; }
  mark_built "$llama_env" "$stamp"
}

# One static binary; the folder it is built in (350 MB) goes away again.
build_llama_server() {
  local stamp="llama-server of $llama_version for $(uname -m)" work=$cache/llama-server.partial
  if is_built "$llama_server" "$stamp"; then return; fi
  say "building llama-server from the source of $llama_version: about 3-6 minutes, this one time"
  need_source
  rm -rf "$work" "$llama_server"
  mkdir -p "$work"
  tar -xzf "$source_archive" -C "$work" --strip-components 1
  PATH="$build_tools/bin:$PATH" with_progress "configuring llama-server" \
    cmake -G Ninja -S "$work/vendor/llama.cpp" -B "$work/out" -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_CXX_FLAGS_RELEASE=-O1 -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=OFF -DGGML_OPENMP=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_UI=OFF \
    -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF \
    -DCMAKE_PROJECT_llama.cpp_INCLUDE="$scripts/engines/llama_unity.cmake"
  PATH="$build_tools/bin:$PATH" with_progress "compiling llama-server" \
    ninja -C "$work/out" llama-server
  mkdir -p "$llama_server/bin"
  mv "$work/out/bin/llama-server" "$llama_server/bin/"
  "$llama_server/bin/llama-server" --version >"$log" 2>&1 \
    || { tail -n 20 "$log" >&2; fail "the built llama-server does not run; see $log"; }
  rm -rf "$work"
  mark_built "$llama_server" "$stamp"
}
