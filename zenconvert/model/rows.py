"""Some rows of a tensor as they travel."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from zenconvert.model.grouped import GroupedRows
from zenconvert.model.scaled import ScaledRows

Rows = NDArray[Any] | GroupedRows | ScaledRows
"""Numbers or block bytes in an array, codes with scales of groups, floats with scales of tiles."""
