"""The ablation through Snakemake: its variants share the run's data, and only what changed is trained again."""

from collections import Counter

from pipeline.artifacts import read_json

ABLATION = """
ablation:
  training_flops: {flops}
  seeds: [4]
  arms:
    masked: {{stage: low_masked, title: masked}}
    plain: {{stage: low_full, title: plain, model: {{mask_mode: none, mixer_depth: 0}}}}
  claims:
    - {{better: masked, worse: plain, paper: {paper}}}
"""
TARGET = "results/ablation.json"
WHOLE = {"train_arm": 2, "evaluate_arm": 2, "ablation": 1}


def test_two_variants_of_one_seed(clone):
    overlay = clone.overlay("ablation.yaml", ABLATION.format(flops="3.0e+9", paper="so it is"))
    assert not clone.planned(overlay) and clone.planned(overlay, target=TARGET) == Counter(WHOLE)
    done = clone.snakemake("--", TARGET, overlays=("tests/workflow/smoke.yaml", overlay))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    result = read_json(clone.folder / TARGET)
    masked, plain = (result["arms"][name] for name in ("masked", "plain"))
    assert 0 < masked["training_flops"] <= 3.0e9 and 0 < plain["training_flops"] <= 3.0e9
    assert masked["mask_ratio"] == 0.75 and plain["mask_mode"] == "none" and masked["images"] % 16 == 0
    assert result["claims"][0]["verdict"] == "one seed decides nothing"
    assert "| masked |" in (clone.folder / "results/ablation.md").read_text()

    assert not clone.planned(overlay, target=TARGET)
    other = clone.overlay("other.yaml", ABLATION.format(flops="3.0e+9", paper="or so"))
    assert clone.planned(other, target=TARGET) == Counter({"ablation": 1})
    other = clone.overlay("other.yaml", ABLATION.format(flops="4.0e+9", paper="so it is"))
    assert clone.planned(other, target=TARGET) == Counter(WHOLE)
