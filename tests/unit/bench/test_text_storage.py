"""The benchmark of text storage measures what it says it measures."""

import pytest
import torch

from benchmarks import text_storage


def test_bytes_are_those_of_the_tokens(monkeypatch):
    monkeypatch.setattr(text_storage, "PAPER", text_storage.PAPER | {"width": 64, "heads": 2})
    found = text_storage.bytes_a_caption(["a red cat"] * 200 + ["a photo of two dogs"] * 200)
    assert found["captions"] == 400 and found["mean_tokens"] == (5 + 7) / 2
    for name, tokens, size in (
        ("padded_float16", 77, 128), ("padded_int8", 77, 64 + 2), ("trimmed_float16", 6, 128), ("trimmed_int8", 6, 64 + 2),
    ):  # fmt: skip
        assert found[name] == pytest.approx(tokens * size, abs=60), name  # key, length and offsets beside them


def test_what_is_read_back(monkeypatch):
    exact, lengths = torch.randn(3, 5, 8), torch.tensor([5, 2, 1])
    padded = text_storage._stored(exact, lengths, "attend", "float16")
    assert torch.equal(padded, exact.half().float())
    trimmed = text_storage._stored(exact, lengths, "drop", "int8")
    assert not trimmed[1, 2:].any() and not trimmed[2, 1:].any()
    assert 0 < (trimmed[0] - exact[0]).norm() / exact[0].norm() < 0.02
