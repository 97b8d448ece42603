"""`python -m pipeline …`: its sub-commands, by what they are for.

Rules call the steps; each also works by hand. `python -m pipeline config STEP` prints the JSON that a step's --config takes.
Steps are imported when called, so that only those which need torch load it.
"""

from pipeline.cli.app import app, main

# In the order in which --help lists them.
from pipeline.cli import running, using, data, training, making  # isort: skip

__all__ = ["app", "data", "main", "making", "running", "training", "using"]
