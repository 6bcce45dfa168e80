"""The plan of a conversion: a pure function of headers, target and options."""
