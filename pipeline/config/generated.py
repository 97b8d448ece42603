"""Files made from the configuration's definition: the JSON schema for editors, and the reference page.

`python -m pipeline.config.generated` writes them, `--check` only compares.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from pipeline.config import schema
from pipeline.config.schema import KINDS, Config, Section
from pipeline.fingerprint import ROOT

SECTIONS: list[tuple[str, type[Section]]] = [
    ("models", schema.FrozenModels),
    *[(f"sources.NAME, kind {kind}", cls) for kind, cls in KINDS.items()],
    ("model", schema.Model),
    ("diffusion", schema.Diffusion),
    ("stages.NAME", schema.Stage),
    ("evaluation", schema.Evaluation),
    ("runtime", schema.Runtime),
    ("report", schema.Report),
]
INTRO = """# Configuration keys

Made from `pipeline/config/schema.py` by `make generated`; do not edit.

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
    text = (section.__doc__ or "").strip()
    return f"## {title}\n\n{text}\n\n| key | type | default | role | meaning |\n|---|---|---|---|---|\n{rows}"


def _row(name: str, field: FieldInfo) -> str:
    role = (field.json_schema_extra or {})["role"]
    cells = [f"`{name}`", _type(field), _default(field), role, field.description or "kind of the source"]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _type(field: FieldInfo) -> str:
    annotation = field.annotation
    if isinstance(annotation, type):
        text = "table" if issubclass(annotation, Section) else annotation.__name__
    elif "pipeline.config" in str(annotation):
        text = "table of tables"
    else:
        text = re.sub(r"Annotated\[str, FieldInfo\(.*?\)\]\)\]", "name", str(annotation).replace("typing.", ""))
        text = text.replace("Literal", "one of ").replace("None", "null")
    return ", ".join([text, *_bounds(field)])


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


FILES = {"workflow/schemas/config.schema.json": json_schema, "docs/reference/config.md": reference}


def main() -> int:
    stale = [name for name, make in FILES.items() if not (ROOT / name).exists() or (ROOT / name).read_text("utf-8") != make()]
    if "--check" in sys.argv[1:]:
        for name in stale:
            print(f"error: {name} is not in step with pipeline/config/schema.py; run `make generated`", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        Path(ROOT / name).write_text(FILES[name](), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
