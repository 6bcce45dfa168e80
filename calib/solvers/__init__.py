"""Solvers: weights and statistics in, codes on a grid out. They know no files and no formats."""
