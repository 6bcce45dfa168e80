"""``python -m zenconvert``."""

import os
import sys

if sys.path[0] in {"", os.getcwd()}:  # noqa: PTH109  (pathlib is not loaded, and might be anybody's)
    del sys.path[0]  # the folder that a user stands in is no place to import from

from zenconvert.cli import main

main()
