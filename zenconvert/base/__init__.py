"""What every room stands on: files, processes, the machine. Knows no model."""
