"""Shoestring: train a text-to-image diffusion transformer from scratch, as one reproducible Snakemake DAG."""

__version__ = "0.1.0"
