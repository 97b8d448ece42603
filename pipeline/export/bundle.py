"""Code of this program as one file that stands alone, for folders that carry the code they need.

diffusers loads a custom component from one file. So a module is written together with every definition that it needs from
other modules of this program, each as it stands there, and with the imports of other packages that these need.
"""

import ast
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGE = __name__.partition(".")[0]
HEADER = '''"""{title}

Put together from modules of Shoestring: export the model again instead of editing this file.
"""
# SPDX-License-Identifier: Apache-2.0
'''

Definition = tuple[str, str]  # module, name


@dataclass(frozen=True)
class Module:
    """What a module defines, and where its other names come from."""

    name: str
    title: str  # first line of the docstring
    source: list[str]
    definitions: dict[str, ast.stmt]
    own: dict[str, str]  # name: module of this program
    others: dict[str, tuple[str, str]]  # name: package and what is imported from it, "" for the package itself

    def text(self, name: str) -> str:
        """A definition as it stands in the file, with its decorators."""
        node = self.definitions[name]
        first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
        return "\n".join(self.source[first - 1 : node.end_lineno])

    def needs(self, name: str) -> set[str]:
        """Names that a definition mentions; more than it needs where one of its own variables has such a name."""
        return {node.id for node in ast.walk(self.definitions[name]) if isinstance(node, ast.Name)}


def bundle(module: str) -> str:
    """Source of one file with all of `module` and what it needs. It imports nothing of this program.

    Modules of this program that end up in it import one another by `from … import name`, and no two names are the same.
    """
    found: dict[Definition, None] = {}
    for name in _read(module).definitions:
        _gather((module, name), found)
    order = [name for name in _in_order(module) if any(name == place for place, _ in found)]
    names = [name for _, name in found]
    assert len(set(names)) == len(names), f"{module}: a name is defined twice: {sorted(names)}"
    parts = [_part(_read(name), found) for name in order]
    return "\n".join([HEADER.format(title=_read(module).title), *_imports(found), *parts])


@cache
def _read(module: str) -> Module:
    source = Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8")
    tree = ast.parse(source)
    result = Module(module, (ast.get_docstring(tree) or "").partition("\n")[0], source.splitlines(), {}, {}, {})
    for node in tree.body:
        for name in _defined(node):
            result.definitions[name] = node
        if isinstance(node, ast.Import):
            result.others.update({alias.asname or alias.name: (alias.name, "") for alias in node.names})
        elif isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == PACKAGE:
            assert not any(alias.asname for alias in node.names), f"{module}: renames what it imports from {node.module}"
            result.own.update({alias.name: node.module for alias in node.names})
        elif isinstance(node, ast.ImportFrom):
            result.others.update({alias.asname or alias.name: (node.module, alias.name) for alias in node.names})
    return result


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _gather(wanted: Definition, found: dict[Definition, None]) -> None:
    """Add a definition and all that it needs."""
    module, name = wanted
    if name not in _read(module).definitions:  # a package hands on what its modules define
        return _gather((_read(module).own[name], name), found)
    if wanted in found:
        return None
    found[wanted] = None
    here = _read(module)
    for needed in sorted(here.needs(name)):
        if needed in here.definitions:
            _gather((module, needed), found)
        elif needed in here.own:
            _gather((here.own[needed], needed), found)
    return None


def _in_order(module: str, seen: dict[str, None] | None = None) -> list[str]:
    """A module behind all those that it imports."""
    seen = {} if seen is None else seen
    for other in dict.fromkeys(_read(module).own.values()):
        if other not in seen:
            _in_order(other, seen)
    seen[module] = None
    return list(seen)


def _part(module: Module, found: dict[Definition, None]) -> str:
    names = [name for name in module.definitions if (module.name, name) in found]
    return "\n\n\n".join([f"\n\n# {module.name}", *(module.text(name) for name in names)]) + "\n"


def _imports(found: dict[Definition, None]) -> Iterator[str]:
    """Of other packages."""
    needed: dict[str, tuple[str, str]] = {}
    for module, name in found:
        for used in _read(module).needs(name) & _read(module).others.keys():
            meaning = _read(module).others[used]
            assert needed.setdefault(used, meaning) == meaning, f"{used} means {needed[used]} and {meaning}"
    for name, (package, what) in sorted(needed.items(), key=lambda item: item[1]):
        if not what:
            yield f"import {package}" + (f" as {name}" if name != package else "")
    for package in sorted({package for package, what in needed.values() if what}):
        pairs = sorted((what, name) for name, (place, what) in needed.items() if place == package and what)
        yield f"from {package} import " + ", ".join(what if what == name else f"{what} as {name}" for what, name in pairs)
