"""What no code here may do with what others give it: run it, unpack it blindly, or hand it to a shell.

Each rule has a line of code that breaks it, so that the rule is seen to work.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from pipeline.config.fields import Name
from pipeline.fingerprint import ROOT

FOLDERS = ("pipeline", "benchmarks", "envs", "tests")
CODE = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
RULES = [ROOT / "Snakefile", *sorted((ROOT / "workflow/rules").glob("*.smk"))]
HERE = Path(__file__).resolve()
Calls = dict[str, ast.expr]

PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
UNPICKLING_ERROR = "pickle.UnpicklingError"  # what torch raises; naming it loads nothing
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "commands.getoutput", "pty.spawn"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
UNPACKING = {"extractall", "extract", "unpack_archive", "_extract_member"}
NO_ARCHIVE = {"network.extract"}  # features of images
XML = {"xml", "lxml", "html5lib", "bs4"}
# Who may pass on a wish to run a model's own code, which the configuration refuses unless it is asked for.
REMOTE_CODE = {"pipeline/frozen/models.py", "pipeline/frozen/captioner.py", "pipeline/frozen/text/transformers.py"}
OPENS_PICTURES = "Image.open"


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call, by the name as it is written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keywords(call: ast.Call) -> Calls:
    return {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_true(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Constant) and value.value is True


def unpickles(tree: ast.AST) -> Iterator[str]:
    """`import pickle` is there to name its error; nothing else of it, nor of its kin, is used."""
    for name in imported(tree):
        if name.split(".")[0] in PICKLES and name != "pickle":
            yield f"import {name}"
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and ast.unparse(node).split(".")[0] in PICKLES
            and ast.unparse(node) != UNPICKLING_ERROR
        ):
            yield ast.unparse(node)
    for name, call in calls(tree):
        if name in ("torch.load", "load_state_dict_from_url") and not is_true(keywords(call).get("weights_only")):
            yield f"{name} without weights_only=True"
        if name.endswith("read_pickle") or (name in ("np.load", "numpy.load") and is_true(keywords(call).get("allow_pickle"))):
            yield name


def runs_text(tree: ast.AST) -> Iterator[str]:
    for name, call in calls(tree):
        if name in BUILTINS or name in SHELLS or name.startswith(("os.exec", "os.spawn")):
            yield name
        shell = keywords(call).get("shell")
        if shell is not None and not (isinstance(shell, ast.Constant) and shell.value is False):
            yield f"{name}(shell=…)"
        if name.startswith("yaml.") and name.split(".")[1] in ("load", "load_all", "unsafe_load", "full_load", "unsafe_load_all"):
            yield name


def unpacks(tree: ast.AST) -> Iterator[str]:
    for name, _ in calls(tree):
        if name.split(".")[-1] in UNPACKING and name not in NO_ARCHIVE:
            yield name


def parses_xml(tree: ast.AST) -> Iterator[str]:
    yield from (name for name in imported(tree) if name.split(".")[0] in XML)


def remote_code(tree: ast.AST) -> Iterator[str]:
    for name, call in calls(tree):
        asked = keywords(call).get("trust_remote_code")
        if asked is not None and not (isinstance(asked, ast.Constant) and asked.value is False):
            yield f"{name}(trust_remote_code={ast.unparse(asked)})"


NEVER: list[tuple[Callable[[ast.AST], Iterator[str]], tuple[str, ...]]] = [
    (
        unpickles,
        (
            "import joblib",
            "from pickle import load",
            "import pickle\npickle.loads(data)",
            "torch.load(file)",
            "torch.load(file, weights_only=False)",
            "np.load(file, allow_pickle=True)",
            "pd.read_pickle(file)",
        ),
    ),
    (
        runs_text,
        (
            "eval(text)",
            "exec(text)",
            "os.system(text)",
            "os.execvp(text, [])",
            "subprocess.run(text, shell=True)",
            "subprocess.run(text, shell=wanted)",
            "yaml.load(text, Loader=yaml.Loader)",
        ),
    ),
    (unpacks, ("tarfile.open(file).extractall(folder)", "zipped.extract(name)", "shutil.unpack_archive(file)")),
    (parses_xml, ("import xml.etree.ElementTree", "from lxml import etree", "from bs4 import BeautifulSoup")),
]


# Tests that do it with what they made themselves, and why.
SET_ASIDE = {
    (unpickles, "tests/unit/export/test_official.py"): "a pickle that must be refused is shown to be one",
    (runs_text, "tests/unit/export/test_bundle.py"): "the program that a bundle holds is run",
    (runs_text, "tests/slurm/conftest.py"): "commands of the pages are run as a user's shell runs them",
    (parses_xml, "tests/unit/report/test_plots.py"): "its own plots are SVG",
}


def found(rule: Callable[[ast.AST], Iterator[str]], path: Path) -> list[str]:
    return list(rule(ast.parse(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("rule", [rule for rule, _ in NEVER], ids=lambda rule: rule.__name__)
def test_never(rule):
    wrong = {str(path.relative_to(ROOT)): found(rule, path) for path in CODE if path != HERE}
    assert {path for path, what in wrong.items() if what} <= {path for kind, path in SET_ASIDE if kind is rule}


@pytest.mark.parametrize(
    ("rule", "line"),
    [(rule, line) for rule, lines in NEVER for line in lines],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_rule_finds_what_breaks_it(rule, line):
    assert list(rule(ast.parse(line)))


def test_the_code_of_a_model_runs_where_the_user_asked_for_it_alone():
    asking = {str(path.relative_to(ROOT)) for path in CODE if found(remote_code, path) and "pipeline" in path.parts}
    assert asking <= REMOTE_CODE
    for path in sorted(asking):
        for what in found(remote_code, ROOT / path):
            assert what.endswith("(trust_remote_code=remote_code)"), what  # the argument of that name, never True
    assert list(remote_code(ast.parse("cls.from_pretrained(name, trust_remote_code=True)")))


def test_pictures_of_others_are_opened_with_a_limit_of_pixels():
    """Pillow's own limit stays where a picture is opened, or the formats are named and the size is checked before decoding."""
    without = [path for path in CODE if "Image.MAX_IMAGE_PIXELS" in path.read_text(encoding="utf-8") and path != HERE]
    assert [str(path.relative_to(ROOT)) for path in without if "pipeline" in path.parts] == ["pipeline/sources/images.py"]
    from pipeline.sources import images

    assert Image.MAX_IMAGE_PIXELS is None  # importing it takes the limit off, as it has one of its own
    assert 10**6 < images.MAX_PIXELS <= 10**8 and "EPS" not in images.FORMATS


# The rules: what comes from a configuration or a file name reaches the shell quoted.

FIELD = re.compile(r"\{([^{}]+)\}")
# Wildcards and stages are names, shards numbers; the others are put together by common.smk of choices and numbers.
CONSTANT = {"params.settings", "params.shard", "params.stage", "params.sampler", "resources.launch", "resources.runtime"}


def shell_fields(text: str) -> Iterator[str]:
    """Fields of the shell commands of a file of rules."""
    for block in re.findall(r"^    shell:\n((?:        .*\n?)+)", text, re.M):
        yield from FIELD.findall(block)


def unquoted(text: str) -> list[str]:
    fields = (field for field in shell_fields(text) if not field.endswith(":q"))
    return [field for field in fields if field not in CONSTANT and not field.startswith("wildcards.")]


def test_every_field_of_a_shell_command_is_quoted_or_constant():
    assert {path.name: unquoted(path.read_text(encoding="utf-8")) for path in RULES} == {path.name: [] for path in RULES}
    assert sum(len(list(shell_fields(path.read_text(encoding="utf-8")))) for path in RULES) > 50
    assert unquoted('    shell:\n        "python x {params.title} {params.sampler} {log:q}"\n') == ["params.title"]
    assert not any(re.search(r"^    run:", path.read_text(encoding="utf-8"), re.M) for path in RULES)


@pytest.mark.parametrize("name", ["a b", "$(x)", "a;b", "a'b", "ä", "a\nb", "../a", "`x`", "", "a{b}", "a\n"])
def test_names_that_reach_the_shell_as_they_are_need_no_quotes(name):
    assert TypeAdapter(Name).validate_python("high_full2") == "high_full2"
    with pytest.raises(ValidationError):
        TypeAdapter(Name).validate_python(name)


def test_a_string_of_the_configuration_reaches_a_step_as_it_is(tmp_path):
    """By the quoting of the rules; a shell that took any of it for its own would leave a file behind."""
    hostile = "a'b\"c `touch made` $(touch made); touch made\n| touch made & {wildcards} \\ ü \t*"
    rules = tmp_path / "Snakefile"
    params, shell = f"text=lambda wildcards: {hostile!r}", "'printf %s {params.text:q} > said'"
    rules.write_text(f"rule all:\n    params:\n        {params}\n    shell:\n        {shell}\n")
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--cores",
        "1",
        "--snakefile",
        str(rules),
        "--directory",
        str(tmp_path),
        "--quiet",
    ]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "said").read_text() == hostile and not (tmp_path / "made").exists()
