"""From a plan to files that get their names when they are whole."""
