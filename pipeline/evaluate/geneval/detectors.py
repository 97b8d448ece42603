"""Object detectors of transformers as GenEval's: Mask2Former on COCO's classes, Grounding DINO and OWLv2 on any names.

Only safetensors are read, and no code that comes with a checkpoint is run.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.embedded.detector import box_of
from pipeline.errors import UserError
from pipeline.evaluate.geneval.scenes import NAME as SCENES
from pipeline.evaluate.geneval.scenes import SceneDetector
from pipeline.evaluate.geneval.scoring import Detection
from pipeline.evaluate.geneval.words import class_of
from pipeline.frozen.models import TRANSFORMERS, Place, identity, load_part, load_weights, locate


class Detector(Protocol):
    """`names`: the classes it knows. `overlap`: from which intersection over union two boxes are one object."""

    identity: dict[str, Any]
    names: frozenset[str]
    overlap: float

    def detect(self, images: Sequence[np.ndarray], threshold: float) -> list[list[Detection]]:
        """Objects of images [H, W, 3] uint8 of one size, with a score above the threshold."""
        ...


def load_detector(ref: str, names: Sequence[str], device: torch.device) -> Detector:
    """`names`: classes that prompts ask for.

    Raises: UserError if the reference leads to no such detector, or to one that lacks some of the classes.
    """
    detector = SceneDetector() if ref == SCENES else _load(ref, names, device)
    if unknown := sorted(set(names) - detector.names):
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise UserError(
            f"evaluation.geneval.detector: {ref} does not know {', '.join(unknown[:5])}{more}, which the prompts ask for; "
            "give a detector of COCO's classes, or one that takes names (Grounding DINO, OWLv2)"
        )
    return detector


def _load(ref: str, names: Sequence[str], device: torch.device) -> Detector:
    place = locate(ref, TRANSFORMERS)
    kinds = {"mask2former": Mask2Former, "grounding-dino": GroundingDino, "owlv2": Owlv2}
    kind = kinds.get(place.config.get("model_type"))
    if kind is None:
        raise place.fault(f"is a {place.class_name}; evaluation.geneval.detector takes Mask2Former, Grounding DINO or OWLv2")
    return kind(place, names, device)


class Mask2Former:
    """Instance masks (arXiv 2112.01527). Its answers are a set: none is about an object that another one is about."""

    overlap = 1.0

    def __init__(self, place: Place, names: Sequence[str], device: torch.device) -> None:
        from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

        self.identity = identity(place.ref)
        self._processor = load_part(place, AutoImageProcessor)
        self._model = load_weights(place, Mask2FormerForUniversalSegmentation, device)
        self._labels = {i: class_of(label) for i, label in self._model.config.id2label.items()}
        self.names = frozenset(self._labels.values())

    @torch.no_grad()
    def detect(self, images: Sequence[np.ndarray], threshold: float) -> list[list[Detection]]:
        inputs = self._processor(images=_pictures(images), return_tensors="pt").to(self._model.device)
        results = self._processor.post_process_instance_segmentation(
            self._model(**inputs), threshold, target_sizes=[image.shape[:2] for image in images], return_binary_maps=True
        )
        return [self._detections(result) for result in results]

    def _detections(self, result: dict[str, Any]) -> list[Detection]:
        masks = result["segmentation"].bool().cpu().numpy() if result["segments_info"] else ()  # [N, H, W]
        return [
            Detection(self._labels[part["label_id"]], part["score"], box_of(mask), mask)
            for part, mask in zip(result["segments_info"], masks, strict=True)
        ]


class GroundingDino:
    """Boxes for names (arXiv 2303.05499). A name's score is the mean over its tokens."""

    overlap = 1.0

    def __init__(self, place: Place, names: Sequence[str], device: torch.device) -> None:
        from transformers import AutoProcessor, GroundingDinoForObjectDetection

        self.identity = identity(place.ref)
        self.names = frozenset(names)
        self._names = list(names)
        self._processor = load_part(place, AutoProcessor)
        self._model = load_weights(place, GroundingDinoForObjectDetection, device)
        ids = self._processor.tokenizer(self._query).input_ids
        if len(ids) > (room := self._model.config.max_text_len):
            raise place.fault(f"the {len(names)} classes of the prompts take {len(ids)} of its {room} tokens; use OWLv2")
        self._shares = self._tokens_of_names(place, ids).to(device)

    @property
    def _query(self) -> str:
        return "".join(f"{name}. " for name in self._names).strip()

    def _tokens_of_names(self, place: Place, ids: list[int]) -> Tensor:
        """[tokens, names]: each name's share of a token; columns sum to 1. A full stop ends a name."""
        stop = self._processor.tokenizer.convert_tokens_to_ids(".")
        special = set(self._processor.tokenizer.all_special_ids)
        shares, name = torch.zeros(len(ids), len(self._names)), 0
        for position, token in enumerate(ids):
            if token == stop:
                name += 1
            elif token not in special:
                shares[position, name] = 1
        if name != len(self._names) or not shares.sum(0).all():
            raise place.fault("its tokenizer does not tell the names of the prompts apart")
        return shares / shares.sum(0)

    @torch.no_grad()
    def detect(self, images: Sequence[np.ndarray], threshold: float) -> list[list[Detection]]:
        queries = [self._query] * len(images)
        inputs = self._processor(images=_pictures(images), text=queries, return_tensors="pt").to(self._model.device)
        output = self._model(**inputs)
        scores = output.logits.sigmoid()[..., : len(self._shares)] @ self._shares  # [B, queries, names]
        return [
            _boxes(self._names, *one.max(-1), boxes * boxes.new_tensor(image.shape[1::-1] * 2), threshold)
            for one, boxes, image in zip(scores, _corners(output.pred_boxes), images, strict=True)
        ]


class Owlv2:
    """Boxes for names (arXiv 2306.09683), one a patch: several may show one object, so the surest is kept."""

    overlap = 0.5
    template = "a photo of a {}"  # as in its training

    def __init__(self, place: Place, names: Sequence[str], device: torch.device) -> None:
        from transformers import AutoProcessor, Owlv2ForObjectDetection

        self.identity = identity(place.ref)
        self.names = frozenset(names)
        self._names = list(names)
        self._processor = load_part(place, AutoProcessor)
        self._model = load_weights(place, Owlv2ForObjectDetection, device)
        self._queries = [self.template.format(name) for name in names]

    @torch.no_grad()
    def detect(self, images: Sequence[np.ndarray], threshold: float) -> list[list[Detection]]:
        texts = [self._queries] * len(images)
        inputs = self._processor(images=_pictures(images), text=texts, return_tensors="pt", truncation=True)
        output = self._model(**inputs.to(self._model.device))
        scores, which = output.logits.max(-1)
        # A picture is padded to a square below and to the right before it is resized.
        return [
            _boxes(self._names, score, best, boxes * max(image.shape[:2]), threshold)
            for score, best, boxes, image in zip(scores.sigmoid(), which, _corners(output.pred_boxes), images, strict=True)
        ]


def _pictures(images: Sequence[np.ndarray]) -> list[Image.Image]:
    return [Image.fromarray(image) for image in images]


def _corners(boxes: Tensor) -> Tensor:
    """[…, 4] (centre x, y, width, height) to (left, top, right, bottom)."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def _boxes(names: list[str], scores: Tensor, which: Tensor, boxes: Tensor, threshold: float) -> list[Detection]:
    """Boxes [Q, 4] with a score [Q] above the threshold, each as the class that it is most like [Q]."""
    rows = zip(scores.tolist(), which.tolist(), boxes.tolist(), strict=True)
    return [Detection(names[i], score, tuple(box)) for score, i, box in rows if score > threshold]
