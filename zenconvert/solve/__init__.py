"""Statistics and solvers at work on one checkpoint."""
