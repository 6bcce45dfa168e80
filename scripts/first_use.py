"""What the first process that needs it compiles, once: ``python -m scripts.first_use``.

Every kernel, into Numba's cache, and what the agents of Ray's nodes import, which have half a
minute to come up.
"""

from __future__ import annotations

import importlib

import torch

from zenconvert.calib.solvers.host_kernels import round_rows, search_rows, settle
from zenconvert.calib.solvers.levels import Levels
from zenconvert.calib.solvers.nested import nested_curvature, nested_gptq
from zenconvert.ggml import blocks
from zenconvert.ggml.encoding import encoding_named
from zenconvert.ggml.types import BY_NAME

if __name__ == "__main__":
    importlib.import_module("ray.dashboard.agent")
    importlib.import_module("ray._private.runtime_env.agent.main")
    row, one, levels = torch.ones(1, 2), torch.ones(1, 1), Levels(top=15, symmetric=True)
    unit = nested_curvature(torch.eye(256), 256)
    search_rows(row, row[0], levels)
    round_rows(row, row[0], 2, levels)
    settle(row, row, torch.eye(2), one, one, 15)
    for name in ("q4_k", "iq4_xs"):  # even levels, and those of a table
        nested_gptq(torch.ones(1, 256), encoding_named(name), unit, None)
    blocks.warm_up(name for name in BY_NAME if blocks.can_decode(name))
