# Sourced by the other scripts: makes .venv with pinned dependencies, once per set of pins.
# Sets PYTHON to the interpreter of the environment. Needs Python >= 3.11.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV="${ZENCONVERT_VENV:-$PWD/.venv}"
PYTHON="$VENV/bin/python"
LLAMACPP="llama-cpp-python==0.3.36"
export ZENCONVERT_LLAMACPP_SOURCE="$VENV/llama.cpp"

find_python() {
    local candidate
    for candidate in "${ZENCONVERT_PYTHON:-python3}" python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            echo "$candidate"
            return
        fi
    done
    echo "zenconvert needs Python 3.11 or newer; set ZENCONVERT_PYTHON to one" >&2
    exit 2
}

pip_install() {
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -c scripts/constraints.txt "$@"
}

# the build without CUDA where one can be had, else whatever the index has
install_torch() {
    local version
    version="$(grep '^torch==' scripts/constraints.txt)"
    "$PYTHON" -c 'import torch' 2>/dev/null && return
    "$PYTHON" -m pip install --quiet --disable-pip-version-check "$version+cpu" 2>/dev/null ||
        "$PYTHON" -m pip install --quiet --disable-pip-version-check "$version+cpu" \
            --index-url https://download.pytorch.org/whl/cpu --retries 1 --timeout 15 2>/dev/null ||
        pip_install "$version"
}

# llama.cpp: the library is built from the source package, whose converter the tests use as well
install_llamacpp() {
    "$PYTHON" -c 'import llama_cpp' 2>/dev/null && [ -d "$ZENCONVERT_LLAMACPP_SOURCE" ] && return
    local work="$VENV/source"
    mkdir -p "$work"
    "$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps \
        --no-binary llama-cpp-python -d "$work" "$LLAMACPP" || return 1
    tar -xzf "$work"/llama_cpp_python-*.tar.gz -C "$work" || return 1
    rm -rf "$ZENCONVERT_LLAMACPP_SOURCE"
    mv "$work"/llama_cpp_python-*/vendor/llama.cpp "$ZENCONVERT_LLAMACPP_SOURCE"
    rm -rf "$work"
    # by name, so that pip keeps the built wheel and the next environment has it at once
    CMAKE_BUILD_PARALLEL_LEVEL="${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}" \
        pip_install --no-binary llama-cpp-python "$LLAMACPP"
}

# $1: extras to install, e.g. [dev]
make_environment() {
    local stamp known pins
    pins="$(cat pyproject.toml scripts/constraints.txt | cksum)"
    stamp="$pins $1"
    known="$(cat "$VENV/stamp" 2>/dev/null || true)"
    # an environment with everything serves as well
    if [[ "$known" != "$stamp" && "$known" != "$pins [dev]" ]]; then
        echo "setting up $VENV (a few minutes the first time) …" >&2
        [ -x "$PYTHON" ] || "$(find_python)" -m venv "$VENV"
        install_torch
        pip_install -e ".$1"
        echo "$stamp" >"$VENV/stamp"
    fi
}
