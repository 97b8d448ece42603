"""Typed configuration: `schema` has every key, `load` reads YAML, `steps` cuts out what one step is given."""

from pipeline.config.fields import Section
from pipeline.config.load import load, validate
from pipeline.config.running import Report, Runtime
from pipeline.config.schema import Config, Stage
from pipeline.config.sources import KINDS, has_table, local_files
from pipeline.config.steps import STEPS, slice_for

__all__ = [
    "KINDS",
    "STEPS",
    "Config",
    "Report",
    "Runtime",
    "Section",
    "Stage",
    "has_table",
    "load",
    "local_files",
    "slice_for",
    "validate",
]
