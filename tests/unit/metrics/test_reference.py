import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipeline.metrics.reference import kept

FACTS = {"ids": "a" * 64, "resize": "clean", "network": ["b" * 64, 299]}
ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture
def features(tmp_path):
    """Asks for features; how often they were computed is counted."""
    calls = []

    def ask(facts=FACTS, value=ROWS):
        return kept(tmp_path, facts, len(value), lambda: calls.append(1) or value)

    ask.calls = calls
    return ask


def test_features_are_computed_once(features, tmp_path):
    assert np.array_equal(features(), ROWS) and np.array_equal(features(), ROWS)
    assert len(features.calls) == 1 and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("change", [{"ids": "c" * 64}, {"resize": "legacy_pytorch"}, {"network": ["b" * 64, 224]}])
def test_whatever_they_depend_on_makes_others(features, change):
    features()
    assert np.array_equal(features({**FACTS, **change}, ROWS + 1), ROWS + 1) and len(features.calls) == 2


def test_the_same_facts_in_another_order_are_the_same(features):
    features()
    features(dict(reversed(FACTS.items())))
    assert len(features.calls) == 1


def damage_cut(file):
    file.write_bytes(file.read_bytes()[:-5])


def damage_bit(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


def damage_swap(file):
    save_file(load_file(file), file, {"facts": "{}", "sha256": "0" * 64})


def damage_empty(file):
    file.write_bytes(b"")


@pytest.mark.parametrize(("damage", "words"), [
    (damage_cut, "not readable"), (damage_empty, "not readable"), (damage_bit, "not what was written"),
    (damage_swap, "of other images"),
])  # fmt: skip
def test_a_damaged_file_is_made_again_and_said_so(features, tmp_path, capsys, damage, words):
    features()
    (file,) = tmp_path.iterdir()
    damage(file)
    assert np.array_equal(features(), ROWS) and len(features.calls) == 2
    said = capsys.readouterr().err
    assert str(file) in said and words in said and "computed again" in said
    features()
    assert len(features.calls) == 2 and capsys.readouterr().err == ""
