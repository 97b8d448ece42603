"""Packages that are not among the dependencies: installed apart, imported where they are asked for."""

import importlib
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from pipeline.errors import UserError


def load_package(score: str, module: str, distribution: str) -> ModuleType:
    """Raises: UserError that says what to install if the module is missing or does not load here."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"evaluation.preference: {score} needs the package {distribution}, which does not load ({error}); install it with "
            f"`pip install {distribution}` into this environment, or leave {score} out"
        ) from error


def version_of(distribution: str) -> str | None:
    """None for a module that was not installed as a distribution."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
