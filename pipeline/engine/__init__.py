"""The training step: objective, optimiser, averages, compilation. Needs torch and nothing else."""
