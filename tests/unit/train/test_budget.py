"""A stage that is given FLOPs trains for as many whole batches as they pay for."""

import pytest

from pipeline.architecture.flops import training_flops
from pipeline.artifacts import read_json
from pipeline.dataset import Manifest
from pipeline.errors import UserError
from pipeline.train.budget import within_budget
from pipeline.train.network import architecture


def test_as_many_whole_batches_as_the_budget_pays_for(toy, slice_of):
    manifest, slice_ = Manifest.read(toy), slice_of()
    flops = training_flops(architecture(slice_, manifest), slice_.stage.mask_ratio)
    batch = slice_.stage.batch_images
    for budget, batches in ((5 * batch * flops, 5), (5.99 * batch * flops, 5), (6.01 * batch * flops, 6)):
        found = within_budget(slice_.model_copy(update={"training_flops": budget}), manifest)
        assert found.stage.images == batches * batch and found.training_flops == budget
    assert within_budget(slice_, manifest) is slice_


def test_a_budget_below_the_warm_up_is_refused(toy, slice_of):
    manifest, slice_ = Manifest.read(toy), slice_of()
    with pytest.raises(UserError, match=r"ablation\.training_flops: 1 pays for 0 images of stage"):
        within_budget(slice_.model_copy(update={"training_flops": 1.0}), manifest)


def test_a_run_ends_when_its_budget_is_spent(trainer, toy, slice_of):
    slice_ = slice_of()
    flops = training_flops(architecture(slice_, Manifest.read(toy)), slice_.stage.mask_ratio)
    budget = 2.5 * slice_.stage.batch_images * flops
    out = trainer.run(slice_.model_copy(update={"training_flops": budget}), toy)
    summary = read_json(out / "summary.json")
    assert summary["images_seen"] == 2 * slice_.stage.batch_images and summary["training_flops"] <= budget
    assert summary["config"]["training_flops"] == budget
