"""Variables of the environment that mean something else wherever a process stands.

Lists of folders that are searched, for programs, modules and libraries, lose every entry that means
the folder where somebody happens to stand, or one below it; an empty one does. Variables that name
one place, as those of caches do, name the same place from everywhere. Only ``os`` is imported: this
is what makes the rest safe to load.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # as typing has it, which need not be loaded
if TYPE_CHECKING:
    from collections.abc import MutableMapping

SEARCHED = (
    "PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH",
    "DYLD_FRAMEWORK_PATH", "DYLD_FALLBACK_FRAMEWORK_PATH",
)  # fmt: skip
LOADED = ("LD_PRELOAD", "LD_AUDIT", "DYLD_INSERT_LIBRARIES")
"""Lists of libraries: one without a slash is looked for where libraries are."""
PLACES = (
    "ZENCONVERT_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME",
    "HOME", "TMPDIR", "TEMP", "TMP",
    "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ASSETS_CACHE", "HF_XET_CACHE",
    "HF_TOKEN_PATH", "HF_MODULES_CACHE", "HF_DATASETS_CACHE", "TRANSFORMERS_CACHE",
    "TORCH_HOME", "TORCHINDUCTOR_CACHE_DIR", "TORCH_EXTENSIONS_DIR", "TRITON_HOME",
    "TRITON_CACHE_DIR", "NUMBA_CACHE_DIR", "CUDA_CACHE_PATH", "VLLM_CACHE_ROOT",
    "VLLM_CONFIG_ROOT", "MPLCONFIGDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE", "LLAMA_CPP_LIB_PATH", "GGML_BACKEND_PATH", "PYTHONHOME",
    "PYTHONPYCACHEPREFIX", "PYTHONUSERBASE",
)  # fmt: skip


def settle(variables: MutableMapping[str, str]) -> None:
    """Make every variable mean the same from everywhere; what would be empty then is not there.

    A place whose folder is gone, as that of the process, is taken out: it can name nothing.
    """
    for name in (*SEARCHED, *LOADED):
        if name in variables:
            bare = name in LOADED
            kept = [p for p in _entries(variables[name], bare) if p.startswith("/") or
                    (bare and "/" not in p)]  # fmt: skip
            _put(variables, name, os.pathsep.join(kept))
    for name in PLACES:
        given = variables.get(name)
        if given and not given.startswith(("/", "~", "$")):
            _put(variables, name, _from_here(given))


def _entries(given: str, spaces: bool) -> list[str]:
    """The entries of a list; those of libraries are parted by spaces, too."""
    return [p for p in (given.replace(" ", ":") if spaces else given).split(os.pathsep) if p]


def _from_here(given: str) -> str:
    try:
        return os.path.join(os.getcwd(), given)  # noqa: PTH109, PTH118  (pathlib is not loaded)
    except FileNotFoundError:
        return ""


def _put(variables: MutableMapping[str, str], name: str, value: str) -> None:
    if value:
        variables[name] = value
    else:
        del variables[name]
