"""The benchmark of encoding runs, and what it prints is what it measured."""

import json

import pytest

from pipeline.bench import encode

SMALL = ["--images", "40", "--side", "64", "--px", "32", "64", "--batch", "16", "--device", "cpu"]


@pytest.mark.parametrize("more", [["--workers", "0"], ["--workers", "1", "--vae-channels", "32", "32"]])
def test_it_prints_one_json_object_and_leaves_nothing_behind(tmp_path, capsys, more):
    assert encode.main([*SMALL, "--folder", str(tmp_path), *more]) == 0
    result = json.loads(capsys.readouterr().out)
    for part in ("decoding", "encoder", "text", "writing", "latents", "whole"):
        assert result[f"{part}_per_second"] > 0
    assert 0 <= result["encoder_waits"] < 1 and result["images"] == 40 and result["workers"] == int(more[1])
    factor = 2 if "--vae-channels" in more else 8
    assert result["latent_shapes"] == [[4, px // factor, px // factor] for px in (32, 64)]
    assert list(tmp_path.iterdir()) == []
