"""The synthetic world of the default run: scenes drawn by code, a detector that reads them, tiny frozen models."""
