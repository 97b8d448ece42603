"""Names for content: canonical JSON, short digests, a hash of the code behind a step, the commit."""

import ast
import hashlib
import importlib.util
import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# Configuration and plumbing change often without changing what a step computes.
LEFT_OUT = {"pipeline", "pipeline.runtime", "pipeline.lock", "pipeline.errors", "pipeline.fingerprint"}


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal strings."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any, length: int = 12) -> str:
    """Short sha256 of a JSON-able value, in hex digits. JSON may hold half a letter (a lone surrogate), which UTF-8 may not."""
    return hashlib.sha256(canonical_json(value).encode(errors="surrogatepass")).hexdigest()[:length]


def git_commit() -> str | None:
    """The commit of this program, with `+` if tracked files differ from it; None outside a checkout."""
    if shutil.which("git") is None:
        return None
    head = _git("rev-parse", "--verify", "HEAD")
    if head.returncode:
        return None
    return head.stdout.strip() + ("+" if _git("status", "--porcelain", "--untracked-files=no").stdout.strip() else "")


def _git(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)


@cache
def code_fingerprint(module: str) -> str:
    """Hash of a step's own modules and of the project modules they import.

    Comments, docstrings and formatting do not count: a rule given this as a param reruns when what the code does may
    have changed, and at no other time.
    """
    trees = {name: _stripped(path.read_text(encoding="utf-8")) for name, path in sorted(_closure(module).items())}
    return digest(trees)


def _closure(module: str) -> dict[str, Path]:
    found, queue = {}, [module]
    while queue:
        name = queue.pop()
        if name in found or name in LEFT_OUT or name.startswith("pipeline.config"):
            continue
        found[name] = _file(name)
        queue += [n for n in _imports(found[name], name) if n not in found]
    return found


def _file(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _imports(path: Path, module: str) -> set[str]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names = _imported(path.read_text(encoding="utf-8"), package)
    return {name for name in names if name.split(".")[0] == "pipeline" and _file(name).exists()}


@cache  # steps share most of their modules
def _imported(text: str, package: str) -> frozenset[str]:
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return frozenset(names)


@cache
def _stripped(text: str) -> str:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            body.pop(0)
    return ast.dump(tree)
