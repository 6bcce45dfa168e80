"""One room per on-disk format. See :mod:`zenconvert.formats.registry`."""
