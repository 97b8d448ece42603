"""Variants of a network at equal training FLOPs: what was found, beside what the paper says."""
