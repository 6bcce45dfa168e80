# Sourced by the other scripts: makes .venv with pinned dependencies, once per set of pins.
# Sets PYTHON to the interpreter of the environment. Needs Python >= 3.11.

set -euo pipefail
CDPATH="" cd -- "$(dirname "${BASH_SOURCE[0]}")/.."  # and from there nothing of the caller's folder

VENV="${ZENCONVERT_VENV:-$PWD/.venv}"
PYTHON="$VENV/bin/python"
LOGS="$VENV"
LLAMACPP="llama-cpp-python==0.3.36"
export ZENCONVERT_LLAMACPP_SOURCE="$VENV/llama.cpp"
# containers often set it: each of hundreds of processes would compile torch anew, seconds every time
unset PYTHONDONTWRITEBYTECODE

# nproc counts what OpenMP is told to use
cores() {
    env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null || sysctl -n hw.ncpu
}

# What needs the network, or one core, runs beside other work, each in a process group of its own: at
# the end of the script, however it comes, none is left. `name=process`, one word each.
BESIDE=""

# $1: name, of the log in $LOGS as well; then a command
beside() {
    local name="$1"
    shift
    mkdir -p "$LOGS"
    set -m
    "$@" >"$LOGS/$name.log" 2>&1 </dev/null &
    set +m
    BESIDE="$BESIDE $name=$!"
    trap end_beside EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

# $1: name; waits for it, and shows how it ended where it failed
join() {
    local one rest="" process="" status=0
    for one in $BESIDE; do
        if [ "${one%=*}" = "$1" ]; then process="${one##*=}"; else rest="$rest $one"; fi
    done
    [ -n "$process" ] || return 0
    wait "$process" || status=$?
    BESIDE="$rest"
    [ "$status" -ne 0 ] || return 0
    tail -20 "$LOGS/$1.log" >&2
    echo "$1 failed (the whole story: $LOGS/$1.log)" >&2
    return 1
}

end_beside() {
    local one
    for one in $BESIDE; do
        kill -TERM -- "-${one##*=}" 2>/dev/null || true
        wait "${one##*=}" 2>/dev/null || true
    done
}

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

# what is imported is compiled then; all of it at once would take longer than everything else here
PIP_INSTALL=(install --quiet --disable-pip-version-check --no-compile)

pip_install() {
    "$PYTHON" -P -m pip "${PIP_INSTALL[@]}" -c scripts/constraints.txt "$@"
}

# the build without CUDA where one can be had, else whatever the index has
install_torch() {
    local version
    version="$(grep '^torch==' scripts/constraints.txt)"
    "$PYTHON" -P -c 'import torch' 2>/dev/null && return
    "$PYTHON" -P -m pip "${PIP_INSTALL[@]}" "$version+cpu" 2>/dev/null ||
        "$PYTHON" -P -m pip "${PIP_INSTALL[@]}" "$version+cpu" \
            --index-url https://download.pytorch.org/whl/cpu --retries 1 --timeout 15 2>/dev/null ||
        pip_install "$version"
}

# llama.cpp is built for no processor in particular: what GGML_NATIVE would put into it may trap on the
# next machine, and on this one where a hypervisor lists what it does not have. (ggml's choice between
# variants at run time needs GGML_BACKEND_DL, whose libraries llama-cpp-python neither installs nor
# loads.) `haswell` is x86-64 with AVX2, FMA and F16C; `plain` whatever every machine of a kind has.
LLAMACPP_COMMON=(-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF)
# ggml's blocks are the same everywhere without contraction to FMA, which x86-64's baseline lacks
[ "$(uname -m)" = x86_64 ] || LLAMACPP_COMMON+=(-DCMAKE_C_FLAGS=-ffp-contract=off)
LLAMACPP_SETS=(SSE42 AVX AVX2 BMI2 FMA F16C)
WHEELS="${ZENCONVERT_WHEELS:-${XDG_CACHE_HOME:-$HOME/.cache}/zenconvert/wheels}"

# what this processor can run, the faster first
llamacpp_flavours() {
    local flags
    flags=" $(sed -n 's/^flags[^:]*: //p;T;q' /proc/cpuinfo 2>/dev/null) "
    if [[ "$(uname -m)" = x86_64 && "$flags" = *" avx2 "* && "$flags" = *" fma "* &&
        "$flags" = *" f16c "* && "$flags" = *" bmi2 "* ]]; then
        echo haswell
    fi
    echo plain
}

# $1: flavour; the arguments of cmake
llamacpp_flags() {
    local switch=OFF name
    [ "$1" = plain ] || switch=ON
    echo "${LLAMACPP_COMMON[@]}"
    if [ "$(uname -m)" = x86_64 ]; then
        for name in "${LLAMACPP_SETS[@]}"; do echo "-DGGML_$name=$switch"; done
    fi
}

# $1: flavour; names a build by all that decides what is in it, so that none serves another machine
llamacpp_key() {
    echo "$LLAMACPP $1 $(uname -sm) $(getconf GNU_LIBC_VERSION 2>/dev/null)" \
        "$(llamacpp_flags "$1" | cksum)" | tr -c 'A-Za-z0-9.\n' '-'
}

# the source, whose converter the tests use as well
get_llamacpp_source() {
    [ -d "$ZENCONVERT_LLAMACPP_SOURCE" ] && return
    local work="$VENV/source"
    rm -rf "$work"
    mkdir -p "$work"
    "$PYTHON" -P -m pip download --quiet --disable-pip-version-check --no-deps \
        --no-binary llama-cpp-python -d "$work" "$LLAMACPP" || return 1
    tar -xzf "$work"/llama_cpp_python-*.tar.gz -C "$work" || return 1
    mv "$work"/llama_cpp_python-*/vendor/llama.cpp "$ZENCONVERT_LLAMACPP_SOURCE"
    rm -rf "$work"
}

# $1: flavour; builds the wheel into a folder of its own where it is not there yet. pip's own cache
# is left out of it: it would give a wheel that was built on, and for, another processor.
build_llamacpp() {
    local folder work less="-DCMAKE_PROJECT_llama.cpp_INCLUDE=$PWD/scripts/llamacpp.cmake"
    folder="$WHEELS/$(llamacpp_key "$1")"
    compgen -G "$folder/*.whl" >/dev/null && return
    echo "building llama.cpp ($1), once: some minutes on two cores …" >&2
    [[ "$PWD" != *[[:space:]]* ]] || less="" # CMAKE_ARGS knows no quotes; it takes longer then
    mkdir -p "$WHEELS"
    work="$(mktemp -d "$WHEELS/.building-XXXXXX")"
    if CMAKE_BUILD_PARALLEL_LEVEL="${CMAKE_BUILD_PARALLEL_LEVEL:-$(cores)}" \
        CMAKE_ARGS="$(llamacpp_flags "$1" | tr '\n' ' ') $less" \
        "$PYTHON" -P -m pip wheel --quiet --disable-pip-version-check --no-cache-dir --no-deps \
        --no-binary llama-cpp-python -w "$work" "$LLAMACPP" >&2; then
        mkdir -p "$folder"
        mv "$work"/*.whl "$folder/"
    fi
    rm -rf "$work"
    compgen -G "$folder/*.whl" >/dev/null
}

# $1: flavour
prepare_llamacpp() {
    get_llamacpp_source || return 1
    build_llamacpp "$1"
}

# $1: flavour; puts the wheel into the environment where another one, or none, is there
put_llamacpp() {
    local key
    key="$(llamacpp_key "$1")"
    [[ "$(cat "$VENV/llamacpp" 2>/dev/null)" = "$key" ]] && return
    build_llamacpp "$1" || return 1
    pip_install --no-cache-dir --force-reinstall --no-deps "$WHEELS/$key"/*.whl || return 1
    pip_install "$LLAMACPP" # what it depends on
    echo "$key" >"$VENV/llamacpp"
}

# that it loads and computes is shown once on every processor that uses the environment
prove_llamacpp() {
    local proof
    proof="$(cat "$VENV/llamacpp") $(grep -E '^(model name|flags|Features|CPU part)' \
        /proc/cpuinfo 2>/dev/null | sort -u | cksum)"
    grep -qxF "$proof" "$VENV/llamacpp-proven" 2>/dev/null && return
    "$PYTHON" -P -m zenconvert doctor --engine llamacpp >"$VENV/llamacpp.log" 2>&1 || return 1
    echo "$proof" >>"$VENV/llamacpp-proven"
}

# the flavour that was put in last, if this processor can run it, else the fastest that it can
choose_llamacpp() {
    local flavour chosen=""
    for flavour in $(llamacpp_flavours); do
        if [[ -z "$chosen" || "$(cat "$VENV/llamacpp" 2>/dev/null)" = "$(llamacpp_key "$flavour")" ]]
        then chosen="$flavour"; fi
    done
    echo "$chosen"
}

install_llamacpp() {
    get_llamacpp_source || return 1
    put_llamacpp "$(choose_llamacpp)" || return 1
    prove_llamacpp && return
    echo "this build of llama.cpp does not work here: $(tail -1 "$VENV/llamacpp.log")" >&2
    put_llamacpp plain && prove_llamacpp && return
    echo "llama.cpp does not work here: $(tail -1 "$VENV/llamacpp.log")" >&2
    return 1
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
        [ -x "$PYTHON" ] || "$(find_python)" -P -m venv "$VENV"
        if [[ "$1" = *dev* ]]; then
            echo "beside it llama.cpp is built where it is not yet: some minutes on two cores" >&2
            beside llama.cpp-build prepare_llamacpp "$(choose_llamacpp)"
        fi
        install_torch
        pip_install -e ".$1"
        # compiled once, not by each of the processes that start next
        "$PYTHON" -P -c 'import torch, transformers'
        join llama.cpp-build
        [[ "$1" != *dev* ]] || put_llamacpp "$(choose_llamacpp)"
        echo "$stamp" >"$VENV/stamp"
    fi
}
