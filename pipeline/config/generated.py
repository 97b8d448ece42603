"""Files made from definitions in the code: the configuration's JSON schema for editors, and two reference pages.

`python -m pipeline.config.generated` writes them, `--check` only compares.
"""

import importlib
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from pipeline.config import evaluation, running, schema
from pipeline.config.fields import Section
from pipeline.config.schema import Config
from pipeline.config.sources import KINDS, Columns, Expect
from pipeline.fingerprint import ROOT

SECTIONS: list[tuple[str, type[Section]]] = [
    ("models", schema.FrozenModels),
    *[(f"sources.NAME, kind {kind}", cls) for kind, cls in KINDS.items()],
    ("sources.NAME.columns", Columns),
    ("sources.NAME.expect", Expect),
    ("captioning", schema.Captioning),
    ("filters", schema.Filters),
    ("filters.scores.NAME", schema.Range),
    ("model", schema.Model),
    ("diffusion", schema.Diffusion),
    ("stages.NAME", schema.Stage),
    ("evaluation", evaluation.Evaluation),
    ("evaluation.sampler", evaluation.Sampler),
    ("evaluation.geneval", evaluation.GenEval),
    ("evaluation.curve", evaluation.Curve),
    ("ablation", evaluation.Ablation),
    ("ablation.arms.NAME", evaluation.Arm),
    ("runtime", running.Runtime),
    ("runtime.downloads", running.Downloads),
    ("report", running.Report),
    ("plan", running.Plan),
]
SIMPLE = {NoneType: "null", str: "str", int: "int", float: "float", bool: "bool", object: "any"}
INTRO = """# Configuration keys

Made from `pipeline/config/` by `make generated`; do not edit.

`config.yaml` is read first; each `--configfile` is laid over it, key by key (lists and values replace, tables merge).
The role says what a change reruns: **result** keys rerun the steps that use them and those below, **runtime** and
**report** keys rerun nothing (but the report page).

"""


def json_schema() -> str:
    """JSON schema of the whole configuration, for completion and checks in an editor."""
    return json.dumps(Config.model_json_schema(), indent=1, ensure_ascii=False) + "\n"


def reference() -> str:
    """One table a section: key, type, default, role, meaning."""
    top = _table("(top level)", Config)
    return INTRO + "\n".join([top] + [_table(title, cls) for title, cls in SECTIONS])


def _table(title: str, section: type[Section]) -> str:
    rows = "".join(_row(name, field) for name, field in section.model_fields.items())
    text = inspect.cleandoc(section.__doc__ or "")
    return f"## {title}\n\n{text}\n\n| key | type | default | role | meaning |\n|---|---|---|---|---|\n{rows}"


def _row(name: str, field: FieldInfo) -> str:
    role = (field.json_schema_extra or {})["role"]
    cells = [f"`{name}`", _type(field), _default(field), role, field.description or "kind of the source"]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _type(field: FieldInfo) -> str:
    return ", ".join([_named(field.annotation), *_bounds(field)])


def _named(kind: Any) -> str:
    """A type in words of YAML: `Annotated` is what it annotates, a section is a table."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _named(inner[0])
    if origin is Literal:
        return f"one of {', '.join(map(repr, inner))}"
    if origin in (Union, UnionType):
        return " | ".join(_named(part) for part in inner)
    if origin is None:
        return "table" if isinstance(kind, type) and issubclass(kind, Section) else SIMPLE.get(kind, str(kind))
    if origin is dict and _named(inner[1]).startswith("table"):
        return "table of tables"
    return f"{origin.__name__}[{', '.join('…' if part is ... else _named(part) for part in inner)}]"


def _bounds(field: FieldInfo) -> Iterator[str]:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    for item in field.metadata:
        for name, sign in signs.items():
            if getattr(item, name, None) is not None:
                yield f"{sign} {getattr(item, name)}"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value: Any = field.default
    return "see below" if isinstance(value, Section) else f"`{json.dumps(value)}`"


CLI_INTRO = """# Command line

Made from `pipeline/cli/` by `make generated`; do not edit.

`python -m pipeline COMMAND …`. The rules of the workflow call these commands; each also works by hand. The JSON that
`--config` takes is printed by `python -m pipeline config STEP`. A mistake is one line on stderr and exit code 1, a
wrong option exit code 2.

"""


def command_line() -> str:
    """One table a sub-command: argument or option, type, default, meaning."""
    # By name: the command line imports this package, which for its part must not depend on it.
    group = typer.main.get_command(importlib.import_module("pipeline.cli").app)
    return CLI_INTRO + "\n".join(_command(name, command) for name, command in group.commands.items())


def _command(name: str, command: Any) -> str:
    rows = "".join(_parameter(parameter) for parameter in command.params)
    return f"## {name}\n\n{command.help}\n\n| argument or option | type | default | meaning |\n|---|---|---|---|\n{rows}"


def _parameter(parameter: Any) -> str:
    names = ", ".join(f"`{name if name.startswith('-') else name.upper()}`" for name in parameter.opts)
    default = "required" if parameter.required else _shown(parameter.default)
    cells = [names, parameter.bare_type(), default, parameter.help or ""]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _shown(default: Any) -> str:
    values = default if isinstance(default, list) else [default]
    return "" if default in (None, "") else " ".join(f"`{value}`" for value in values)


FILES = {
    "workflow/schemas/config.schema.json": json_schema,
    "docs/reference/config.md": reference,
    "docs/reference/cli.md": command_line,
}


def main() -> int:
    stale = [name for name, make in FILES.items() if not (ROOT / name).exists() or (ROOT / name).read_text("utf-8") != make()]
    if "--check" in sys.argv[1:]:
        for name in stale:
            print(f"error: {name} is not in step with the code it is made from; run `make generated`", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        Path(ROOT / name).write_text(FILES[name](), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
