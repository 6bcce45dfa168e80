"""Verification: how far an artifact has moved from its reference, per language."""
