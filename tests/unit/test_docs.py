"""The documentation against the code: links, examples, commands and tables. Loads no torch."""

import ast
import re
import shlex

import pyarrow as pa
import pytest
import typer
import yaml

from pipeline import artifacts
from pipeline.cli import app
from pipeline.config import load
from pipeline.config.load import validate
from pipeline.fingerprint import ROOT
from pipeline.ledger import REASONS
from pipeline.manifest.reasons import LATENT, TEXT
from pipeline.manifest.reasons import REASONS as LEFT_OUT

PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")] + sorted((ROOT / "docs").rglob("*.md"))
PRESETS = {path.stem: path for path in (ROOT / "workflow/presets").glob("*.yaml")}
PROFILE = ROOT / "workflow/profiles/slurm/profile.yaml"
COMMANDS = typer.main.get_command(app).commands


def text_of(name):
    """Of a path, or of a name below the root."""
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(language):
    """(page, rest of the info string, content) of all fenced blocks of a language."""
    fence = re.compile(rf"^```{language}\b *(.*?)\n(.*?)^```$", re.M | re.S)
    return [(page, *match) for page in PAGES for match in fence.findall(text_of(page))]


def ids(block):
    return str(block[0].relative_to(ROOT)) if isinstance(block, tuple) else None


def links():
    """Relative links outside of fenced blocks."""
    for page in PAGES:
        prose = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)\s]+)\)", prose):
            if not re.match(r"[a-z]+:", target):
                yield page, target


@pytest.mark.parametrize(("page", "target"), list(links()), ids=lambda x: x if isinstance(x, str) else x.stem)
def test_a_relative_link_leads_to_a_file(page, target):
    file, _, anchor = target.partition("#")
    there = (page.parent / file).resolve() if file else page
    assert there.exists(), f"{page.relative_to(ROOT)}: {target}"
    if anchor:
        titles = re.findall(r"^#+ (.+)$", text_of(there), re.M)
        assert anchor in {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}, target


def test_every_page_is_reached_from_the_readme():
    seen, queue = set(), [ROOT / "README.md"]
    targets = [(page, (page.parent / target.partition("#")[0]).resolve()) for page, target in links()]
    while queue:
        page = queue.pop()
        seen.add(page)
        queue += [target for origin, target in targets if origin == page and target not in seen and target.suffix == ".md"]
    assert set(PAGES) <= seen


@pytest.mark.parametrize("block", blocks("yaml"), ids=ids)
def test_a_yaml_block_is_a_valid_overlay(block, tmp_path):
    """Of the default, or of the preset that the fence names; `profile` is a piece of a profile."""
    page, over, content = block
    if over == "profile":
        assert set(yaml.safe_load(content)) <= set(yaml.safe_load(PROFILE.read_text())), page
        return
    (tmp_path / "my.yaml").write_text(content)
    load(ROOT / "config.yaml", *([PRESETS[over]] if over else []), tmp_path / "my.yaml")


def commands():
    """The words behind `python -m pipeline` in fenced blocks and in inline code."""
    for page in PAGES:
        text = text_of(page).replace("\\\n", " ")
        for line in re.findall(r"python -m pipeline (?!\.)([^`\n]+)", text):
            yield page, shlex.split(line, comments=True)


@pytest.mark.parametrize(("page", "words"), list(commands()), ids=lambda x: " ".join(x)[:40] if isinstance(x, list) else x.stem)
def test_a_command_exists_with_its_options(page, words):
    if words[0] in {"COMMAND", "--help"}:  # of all commands
        return
    assert words[0] in COMMANDS, f"{page.name}: no sub-command {words[0]}"
    known = {option for parameter in COMMANDS[words[0]].params for option in parameter.opts} | {"--help"}
    if words[:1] == ["bench"] and len(words) > 1:  # with options of its own for each benchmark
        known |= set(re.findall(r'add_argument\("(--[\w-]+)"', text_of(f"pipeline/bench/{words[1].replace('-', '_')}.py")))
    given = {word.partition("=")[0] for word in words[1:] if re.match(r"--?[a-z]", word)}
    assert given <= known, f"{page.name}: {given - known}"


@pytest.mark.parametrize("block", blocks("bash"), ids=ids)
def test_what_a_shell_block_names_is_there(block):
    """Targets of make, presets and profiles; a target of Snakemake must not be read as one more configfile."""
    page, _, content = block
    for line in content.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True) if "<<" not in line else []
        for word in words:
            assert not word.startswith("workflow/") or (ROOT / word).exists(), f"{page.name}: {word}"
        if words[:1] == ["make"]:
            assert re.search(rf"^{words[1]}:", text_of("Makefile"), re.M), f"{page.name}: {line}"
        if "--configfile" in words:
            files = words[words.index("--configfile") + 1 :]
            end = next((i for i, word in enumerate(files) if word.startswith("-")), len(files))
            assert all(word.endswith(".yaml") for word in files[:end]), f"{page.name}: {line}"


def test_keys_named_in_the_text_exist():
    """`section.key` in inline code, for the sections whose keys are fixed."""
    config = validate(yaml.safe_load(text_of("config.yaml")))
    for page in PAGES:
        for section, key in re.findall(r"`(runtime|report|evaluation|models|diffusion)\.(\w+)`", text_of(page)):
            assert key in type(getattr(config, section)).model_fields, f"{page.name}: {section}.{key}"


def first_cells(name, title):
    """Code in the first column of the table below a title."""
    section = re.search(rf"^## {title}$(.*?)(?=^## |\Z)", text_of(name), re.M | re.S)[1]
    return re.findall(r"^\| `([^`]+)` \|", section, re.M)


def test_every_ledger_reason_is_documented():
    assert first_cells("docs/how-to/fix-bad-input.md", "Reasons in the ledger") == list(REASONS)


def left_out_reasons():
    """As the code of captions, encode and manifest spells them."""
    found = set(re.findall(r'"(\w+_caption)"', text_of("pipeline/caption/captions.py")))
    faults = re.search(r'"(\w+)" if finite\[row\] else "(\w+)"', text_of("pipeline/encode/shards.py")).groups()
    return found | set(LEFT_OUT) | {part.format(fault) for part in (TEXT, LATENT) for fault in faults}


def test_every_reason_for_being_left_out_is_documented():
    documented = first_cells("docs/how-to/fix-bad-input.md", "Reasons for being left out of a stage")
    assert len(documented) == len(set(documented)) and set(documented) == left_out_reasons()
    assert [reason for reason in documented if reason in LEFT_OUT] == list(LEFT_OUT)  # in the order they are tried


def test_every_direct_dependency_has_its_line():
    lines = [line.partition("#")[0].strip() for line in text_of("envs/requirements.in").splitlines()]
    wanted = [re.match(r"[\w-]+", line)[0] for line in lines if line]
    rows = re.findall(r"^\| `([^`]+)` \| .{10,} \|$", text_of("docs/reference/dependencies.md"), re.M)
    assert rows == sorted(wanted)


def columns_of(title):
    """Type of each column by name, of the table below a title in the page of files; `; …` of a column is no type."""
    section = re.search(rf"^## {re.escape(title)}.*?(?=^## |\Z)", text_of("docs/reference/artifacts.md"), re.M | re.S)[0]
    rows = re.search(r"^\| column \| type \| meaning \|\n\|[-|]+\n((?:\|.*\n)+)", section, re.M)[1].splitlines()
    cells = [row.strip("| ").split(" | ") for row in rows]
    return {name: kind for names, kind, _ in cells for name in re.findall(r"`(\w+)`", names)}


def in_words(kind):
    """A type of Arrow as the page names it."""
    if pa.types.is_fixed_size_list(kind):
        return f"fixed-size list of {in_words(kind.value_type)}"
    if pa.types.is_list(kind):
        return f"list of {in_words(kind.value_type)}s"
    if pa.types.is_map(kind):
        return f"map of {in_words(kind.key_type)} to {in_words(kind.item_type)}"
    return {"halffloat": "float16", "float": "float32"}.get(str(kind), str(kind))


@pytest.mark.parametrize(
    ("title", "schema"),
    [
        ("Table", artifacts.TABLE),
        ("Ledger", artifacts.LEDGER),
        ("Captions", artifacts.CAPTIONS),
        ("Latents", artifacts.latents_schema((4, 8, 8), {}).append(artifacts.BUCKET)),
        ("Manifest", artifacts.BUCKETED_INDEX),
    ],
)
def test_every_column_is_documented_with_its_type(title, schema):
    assert columns_of(title) == {field.name: in_words(field.type) for field in schema}


def test_every_column_of_text_is_documented_with_its_type():
    """Those of both kinds of storage; of `tokens` the page names the type that is the default."""
    plain, small = (artifacts.text_schema((77, 8), {"dtype": dtype}) for dtype in ("float16", "int8"))
    assert columns_of("Text embeddings") == {field.name: in_words(field.type) for field in (*small, *plain)}


def keys_built_in(name, function):
    """Keys that stand as text in the dictionaries of a function."""
    tree = ast.parse(text_of(name))
    body = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == function)
    dicts = [node for node in ast.walk(body) if isinstance(node, ast.Dict)]
    return {key.value for node in dicts for key in node.keys if isinstance(key, ast.Constant)}


@pytest.mark.parametrize(
    ("page", "file", "functions"),
    [
        ("card", "pipeline/evaluate/evaluate.py", ["run", "_facts", "_accuracies"]),
        ("card", "pipeline/evaluate/scores.py", ["scores", "_clip_scores", "kernel_distance", "spread"]),
        ("card", "pipeline/evaluate/card.py", ["other_models"]),
        ("card", "pipeline/report/card.py", ["run", "_scores", "_stage", "_cost", "_total"]),
        ("artifacts", "pipeline/evaluate/evaluate.py", ["_show"]),
        ("artifacts", "pipeline/train/summary.py", ["summary", "_cost"]),
        ("artifacts", "pipeline/train/stage.py", ["log", "validate", "score"]),
        ("artifacts", "pipeline/train/scores.py", ["measure"]),
        ("artifacts", "pipeline/train/validation.py", ["measure"]),
        ("artifacts", "pipeline/train/skips.py", ["note"]),
        ("artifacts", "pipeline/train/speed.py", ["plan", "spent"]),
        ("artifacts", "pipeline/encode/encode.py", ["_write_sidecar", "run"]),
        ("artifacts", "pipeline/manifest/build.py", ["run", "_entry", "_facts"]),
        ("artifacts", "pipeline/manifest/account.py", ["account", "_images", "_captions"]),
        ("artifacts", "pipeline/sources/collect.py", ["_counts"]),
        ("artifacts", "pipeline/sources/shard.py", ["_row", "_description"]),
        ("artifacts", "pipeline/export/trained.py", ["_provenance"]),
        ("artifacts", "pipeline/evaluate/geneval/benchmark.py", ["run", "result", "_task", "_failures"]),
        ("artifacts", "pipeline/evaluate/geneval/self_test.py", ["self_test"]),
        ("card", "pipeline/evaluate/preference/scores.py", ["measure"]),
        ("artifacts", "pipeline/runtime.py", ["process_record"]),
    ],
)
def test_every_key_that_a_step_writes_is_documented(page, file, functions):
    written = set().union(*(keys_built_in(file, function) for function in functions))
    inside = {"metrics", "file", "python", "torch", "accelerate"}  # merged into the card; versions
    words = set(re.findall(r"\w+", text_of(f"docs/reference/{page}.md")))
    assert written and written - inside <= words, written - inside - words
