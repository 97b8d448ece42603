"""Who may import whom. The table is the architecture; anything else fails."""

import ast
import subprocess
import sys

import pytest

from pipeline.fingerprint import ROOT

BASE = {"config", "artifacts", "runtime", "errors", "fingerprint"}
ALLOWED = {
    "errors": set(),
    "fingerprint": set(),
    "config": {"errors", "fingerprint"},
    "artifacts": {"errors", "fingerprint"},
    "runtime": {"errors", "artifacts"},
    "lock": {"errors"},
    "gpus": {"errors", "lock"},
    "architecture": set(),
    "model": {"architecture"},
    "diffusion": set(),
    "engine": {"architecture", "model", "diffusion"},
    "tensors": {"artifacts"},
    "ledger": {"artifacts"},
    "download": {"errors", "config", "ledger", "runtime", "artifacts", "lock"},
    "dataset": {"errors", "fingerprint", "artifacts"},
    "frozen": {"errors", "fingerprint", "artifacts"},
    "metrics": {"tensors", "errors", "fingerprint", "config", "artifacts", "ledger", "download", "frozen"},
    "reals": {"errors", "fingerprint", "artifacts", "frozen", "metrics"},
    "trained": {"errors", "artifacts", "model", "diffusion"},
    "embedded": {"errors", "runtime", "frozen"},
    "sources": BASE | {"embedded", "ledger", "download"},
    "caption": BASE | {"frozen"},
    "encode": BASE | {"frozen", "diffusion"},
    "manifest": BASE | {"dataset"},
    "train": BASE | {"dataset", "engine", "frozen", "metrics", "model", "diffusion", "reals"},
    # architecture, plan, sources, embedded: `plan --measure` times the parts of a run
    "bench": BASE
    | {"dataset", "train", "engine", "model", "diffusion", "encode", "frozen", "architecture", "plan", "sources", "embedded"},
    # download, ledger: prompts of others come from the web
    "evaluate": BASE
    | {"frozen", "metrics", "model", "diffusion", "engine", "embedded", "reals", "trained", "download", "ledger"},
    "ablation": BASE | {"report"},
    "serve": BASE | {"export", "trained"},
    "export": BASE | {"tensors", "frozen", "architecture", "model", "diffusion", "trained"},
    "report": BASE,
    "verify": {"errors", "fingerprint", "artifacts", "runtime", "lock", "status"},  # status: whether a run is going on
    "status": BASE | {"lock"},
    "plan": BASE | {"frozen", "architecture", "report"},
}
ALLOWED["cli"] = set(ALLOWED)
FILES = sorted(p for p in (ROOT / "pipeline").rglob("*.py") if p.name != "__main__.py" and p != ROOT / "pipeline/__init__.py")


def _imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "pipeline")


def _part(path):
    return path.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_its_part_may(path):
    part = _part(path)
    for name in _imported(path):
        assert name.split(".")[0] != "snakemake", f"{path} imports snakemake"
        if name.startswith("pipeline."):
            other = name.split(".")[1]
            assert other == part or other in ALLOWED[part], f"{path}: {part} may not import {other}"


def test_the_architecture_needs_the_standard_library_alone():
    for path in (ROOT / "pipeline/architecture").rglob("*.py"):
        for name in _imported(path):
            assert name.startswith("pipeline.architecture") or name.split(".")[0] in sys.stdlib_module_names, (
                f"{path} imports {name}"
            )


@pytest.mark.parametrize("part", ["model", "diffusion", "engine"])
def test_model_diffusion_and_engine_import_torch_and_the_standard_library_alone(part):
    for path in (ROOT / "pipeline" / part).rglob("*.py"):
        for name in _imported(path):
            top = name.split(".")[0]
            assert top in {"torch", "pipeline"} or top in sys.stdlib_module_names, f"{path} imports {name}"


@pytest.mark.parametrize(
    "module",
    [
        "__main__",
        "sources.collect",
        "sources.table",
        "caption.captions",
        "manifest.build",
        "report.card",
        "report.page",
        "plan.table",
        "status.command",
        "verify.command",
    ],
)
def test_light_steps_load_no_torch(module):
    code = f"import sys, pipeline.{module}; sys.exit(' '.join({{'torch', 'diffusers', 'transformers'}} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_unsafe_loading_anywhere():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"pickle.load", "pickle.loads", "joblib.load", "eval", "exec", "os.system"}, path
                if called == "torch.load":
                    assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords), path
                assert not any(
                    k.arg in ("shell", "trust_remote_code") and ast.unparse(k.value) == "True" for k in node.keywords
                ), path
