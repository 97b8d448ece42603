"""The real detector classes with random weights: what they answer is read rightly, whatever it is."""

import shutil

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.evaluate.geneval.detectors import load_detector
from pipeline.frozen.models import identity
from tests.unit.evaluate.geneval.detector_models import MAKERS, NAMES

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (48, 48, 3)).astype(np.uint8) for _ in range(3)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detectors")
    for name, save in MAKERS.items():
        save(folder / name)
    return folder


@pytest.fixture(params=list(MAKERS))
def detector(request, folders):
    return load_detector(str(folders / request.param), NAMES, CPU)


def test_detections_lie_in_the_picture_and_are_sure_enough(detector):
    found = detector.detect(IMAGES, 0.0)
    assert len(found) == len(IMAGES) and all(found), "random weights are unsure, but see something"
    scores = sorted(one.score for group in found for one in group)
    middle = scores[len(scores) // 2]
    for one in [one for group in detector.detect(IMAGES, middle) for one in group]:
        left, top, right, bottom = one.box
        assert one.score >= middle and one.name in NAMES and right >= left and bottom >= top
        assert -48 <= left < 96 and -48 <= top < 96


def test_a_picture_is_judged_alike_alone_and_in_a_batch(detector):
    together = detector.detect(IMAGES, 0.0)
    for image, group in zip(IMAGES, together, strict=True):
        (alone,) = detector.detect([image], 0.0)
        assert [one.name for one in alone] == [one.name for one in group]
        np.testing.assert_allclose([one.score for one in alone], [one.score for one in group], atol=1e-4)
        np.testing.assert_allclose([one.box for one in alone], [one.box for one in group], atol=1.01)


def test_the_card_can_name_it(detector, folders):
    assert detector.identity["sha256"] == identity(detector.identity["ref"])["sha256"]
    assert detector.names >= set(NAMES)


def test_masks_are_those_of_the_boxes(folders):
    detector = load_detector(str(folders / "mask2former"), NAMES, CPU)
    for group in detector.detect(IMAGES, 0.0):
        for one in group:
            assert one.mask.shape == (48, 48) and one.mask.dtype == bool
            left, top, right, bottom = map(int, one.box)
            inside = one.mask[top:bottom, left:right]
            assert inside.sum() == one.mask.sum()
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()


def test_boxes_of_owlv2_are_those_of_its_own_reading(folders):
    from transformers import Owlv2ForObjectDetection, Owlv2Processor

    model, processor = (cls.from_pretrained(folders / "owlv2") for cls in (Owlv2ForObjectDetection, Owlv2Processor))
    texts = [[f"a photo of a {name}" for name in NAMES]]
    inputs = processor(images=[IMAGES[0]], text=texts, return_tensors="pt")
    with torch.no_grad():
        output = model.eval()(**inputs)
    (expected,) = processor.post_process_grounded_object_detection(
        output, 0.1, target_sizes=[(48, 48)], text_labels=[list(NAMES)]
    )
    (found,) = load_detector(str(folders / "owlv2"), NAMES, CPU).detect([IMAGES[0]], 0.1)
    assert [one.name for one in found] == expected["text_labels"] and found
    np.testing.assert_allclose([one.score for one in found], expected["scores"], atol=1e-5)
    np.testing.assert_allclose([one.box for one in found], expected["boxes"], atol=1e-3)


def test_a_wide_picture_keeps_its_shape_with_owlv2(folders):
    wide = np.concatenate(IMAGES[:2], axis=1)
    padded = np.concatenate([wide, np.zeros_like(wide)])  # the processor pads below
    detector = load_detector(str(folders / "owlv2"), NAMES, CPU)
    (a,), (b,) = detector.detect([wide], 0.0), detector.detect([padded], 0.0)
    for one, other in zip(a, b, strict=True):
        np.testing.assert_allclose(one.box, other.box, atol=5)


def test_boxes_of_grounding_dino_are_those_of_its_own_reading(folders):
    from transformers import GroundingDinoForObjectDetection, GroundingDinoProcessor

    model = GroundingDinoForObjectDetection.from_pretrained(folders / "grounding_dino").eval()
    processor = GroundingDinoProcessor.from_pretrained(folders / "grounding_dino")
    inputs = processor(images=[IMAGES[0]], text=[list(NAMES)], return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs)
    (expected,) = processor.post_process_grounded_object_detection(output, inputs.input_ids, 0.0, 0.0, target_sizes=[(48, 48)])
    (found,) = load_detector(str(folders / "grounding_dino"), NAMES, CPU).detect([IMAGES[0]], 0.0)
    np.testing.assert_allclose([one.box for one in found], expected["boxes"], atol=1e-3)
    # [CLS] dog . computer mo ##use . cat . [SEP]
    tokens = output.logits.sigmoid()[0]
    by_name = torch.stack([tokens[:, 1], tokens[:, [3, 4, 5]].mean(1), tokens[:, 7]], dim=1)
    np.testing.assert_allclose([one.score for one in found], by_name.max(1).values, atol=1e-5)
    assert [one.name for one in found] == [NAMES[i] for i in by_name.argmax(1)]


def test_classes_that_a_detector_does_not_know_are_named(folders):
    with pytest.raises(UserError, match=r"detector: .*mask2former does not know giraffe, zebra, which the prompts ask for"):
        load_detector(str(folders / "mask2former"), ["dog", "zebra", "giraffe"], CPU)
    with pytest.raises(UserError, match="scenes does not know cat, computer mouse, dog"):
        load_detector("scenes", NAMES, CPU)


def test_names_that_do_not_fit_into_grounding_dino(folders):
    with pytest.raises(UserError, match=r"the 20 classes of the prompts take 42 of its 32 tokens; use OWLv2"):
        load_detector(str(folders / "grounding_dino"), ["dog"] * 20, CPU)


def test_another_model_is_no_detector(frozen):
    with pytest.raises(
        UserError, match=r"is a CLIPModel; evaluation.geneval.detector takes Mask2Former, Grounding DINO or OWLv2"
    ):
        load_detector(frozen["clip"], NAMES, CPU)


@pytest.mark.parametrize("name", MAKERS)
def test_pickled_weights_are_not_read(folders, tmp_path, name):
    folder = tmp_path / name
    shutil.copytree(folders / name, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no .safetensors in"):
        load_detector(str(folder), NAMES, CPU)
