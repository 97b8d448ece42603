"""Benchmarks: `python -m pipeline bench NAME`. `train-step` needs torch and nothing else."""
