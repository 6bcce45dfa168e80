"""``python -m zenconvert``."""

from zenconvert.cli import main

main()
