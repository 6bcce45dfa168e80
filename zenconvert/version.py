"""The version of zenconvert."""

__version__ = "0.1.0"
