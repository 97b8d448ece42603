"""Which samples a stage trains on, and why the others do not reach it."""
