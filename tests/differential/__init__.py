"""Random configs through every format and the runtime of each."""
