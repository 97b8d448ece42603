import ast
import importlib
import inspect
import re

import pytest

from pipeline.export import bundle as module
from pipeline.export.bundle import bundle

SHIPPED = ("pipeline.export.diffusers_model", "pipeline.export.diffusers_pipeline")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_code_is_the_code_of_this_program(name):
    """Every function and class stands in the file as it stands in its module."""
    text, count = bundle(name), 0
    for place, part in re.findall(r"^# (pipeline\.[\w.]+)$(.*?)(?=^# pipeline\.|\Z)", text, re.M | re.S):
        source = inspect.getsource(importlib.import_module(place))
        for node in ast.parse(part).body:
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
            written = "\n".join(part.splitlines()[first - 1 : node.end_lineno])
            assert f"\n{written}\n" in source, f"{place}: {written[:60]}"
            count += 1
    assert count > 20


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_code_imports_nothing_of_this_program(name):
    tops = set()
    for node in ast.walk(ast.parse(bundle(name))):
        if isinstance(node, ast.Import):
            tops |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            tops.add(node.module.partition(".")[0])
    assert "torch" in tops
    assert not tops & {"pipeline", "numpy", "pyarrow", "pydantic", "open_clip", "accelerate"}


def test_only_what_is_needed_is_shipped():
    text = bundle("pipeline.export.diffusers_model")
    assert "class MicroDiT(" in text and "class ExpertMLP(" in text
    assert "PRESETS" not in text and "def forward_flops" not in text


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes modules that the bundle takes for its own."""
    (tmp_path / "mine").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(module, "PACKAGE", "mine")
    module._read.cache_clear()

    def write(**modules):
        for name, text in {"__init__": "", **modules}.items():
            (tmp_path / "mine" / f"{name}.py").write_text(text)
        importlib.invalidate_caches()

    yield write
    module._read.cache_clear()
    for name in [name for name in importlib.sys.modules if name.partition(".")[0] == "mine"]:
        del importlib.sys.modules[name]


FIRST = """\"\"\"First.\"\"\"
import math as m

SIZE = int(m.pi)  # three
UNUSED = 1


def half(x):
    return x / SIZE
"""
SECOND = """\"\"\"Second.\"\"\"
from dataclasses import dataclass
from mine.a import SIZE, half

THIRD = half(9)


@dataclass
class Box:
    size: int = SIZE
"""


def test_definitions_come_in_an_order_that_runs(package):
    package(a=FIRST, b=SECOND)
    text = bundle("mine.b")
    assert "# three" in text and "UNUSED" not in text
    found = {}
    exec(compile(text, "bundle", "exec"), found)
    assert (found["THIRD"], found["Box"]().size) == (3.0, 3)


@pytest.mark.parametrize(
    "modules",
    [
        {
            "a": "def one(): pass",
            "c": "def one(): pass\ndef two(): one()",
            "b": "from mine.a import one\nfrom mine.c import two\nX = one, two",
        },
        {"a": "import json as x\ndef one(): x", "b": "import math as x\nfrom mine.a import one\ndef two(): x, one"},
        {"a": "def one(): pass", "b": "from mine.a import one as two\nX = two"},
    ],
    ids=["two definitions", "two imports", "a new name"],
)
def test_names_that_would_collide_are_refused(package, modules):
    package(**modules)
    with pytest.raises(AssertionError):
        bundle("mine.b")
