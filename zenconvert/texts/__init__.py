"""Texts of many languages, and the windows of tokens that they become."""
