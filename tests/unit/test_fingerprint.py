"""Names for content: what changes them and what does not."""

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import fingerprint
from pipeline.fingerprint import canonical_json, code_fingerprint, digest, git_commit

LEAVES = st.none() | st.booleans() | st.integers() | st.text()
JSON = st.recursive(LEAVES, lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(), x, max_size=4), max_leaves=12)


@given(st.dictionaries(st.text(), JSON, max_size=6))
def test_order_of_keys_does_not_count(value):
    assert canonical_json(value) == canonical_json(dict(reversed(value.items())))
    assert digest(value) == digest(dict(reversed(value.items())))


def test_different_values_have_different_digests():
    assert digest({"a": 0.1, "b": 0.2}) != digest({"a": 0.2, "b": 0.1})


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "pipeline"
    (folder / "part").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "part/__init__.py").write_text("")
    (folder / "part/step.py").write_text("from pipeline.part.helper import f\n\n\ndef run():\n    return f()\n")
    (folder / "part/helper.py").write_text("def f():\n    return 1\n")
    (folder / "part/other.py").write_text("def g():\n    return 2\n")
    monkeypatch.setattr(fingerprint, "ROOT", tmp_path)
    code_fingerprint.cache_clear()
    yield folder / "part"
    code_fingerprint.cache_clear()


def _fingerprint_after(file, text):
    file.write_text(text)
    code_fingerprint.cache_clear()
    return code_fingerprint("pipeline.part.step")


def test_a_comment_or_docstring_changes_nothing(package):
    before = code_fingerprint("pipeline.part.step")
    text = '"""Docs."""\n# why\ndef f():\n    """More."""\n\n    return 1\n'
    assert _fingerprint_after(package / "helper.py", text) == before


def test_an_edit_in_an_imported_module_changes_it(package):
    before = code_fingerprint("pipeline.part.step")
    assert _fingerprint_after(package / "helper.py", "def f():\n    return 3\n") != before


def test_an_edit_in_an_unrelated_module_changes_nothing(package):
    before = code_fingerprint("pipeline.part.step")
    assert _fingerprint_after(package / "other.py", "def g():\n    return 9\n") == before


def test_the_commit_is_that_of_the_checkout_and_none_outside_one(tmp_path, monkeypatch):
    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", "-C", tmp_path, *identity, *words], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(fingerprint, "ROOT", tmp_path)
    assert git_commit() is None
    git("init")
    assert git_commit() is None
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "one")
    assert git_commit() == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("2")
    assert git_commit() == git("rev-parse", "HEAD") + "+"


def test_half_a_letter_has_a_digest_of_its_own():
    assert len({digest("\ud800"), digest("\ud801"), digest("?")}) == 3
