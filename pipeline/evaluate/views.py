"""Which networks look at the images, at which resizing, and what is measured with what each of them sees."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.config.evaluation import Evaluation
from pipeline.config.running import Downloads
from pipeline.frozen.clip import Clip
from pipeline.metrics.cmmd import cmmd
from pipeline.metrics.dino import dino
from pipeline.metrics.features import RESIZERS, FeatureNetwork, clip_tower, inception
from pipeline.metrics.fid import fid

if TYPE_CHECKING:
    import torch

Distance = Callable[[np.ndarray, np.ndarray], float]  # of features [N, D] from those [M, D] of the reference
OTHERS_RESIZE = "clean"  # of all but FID and KID, whose mode is a choice


class Networks(NamedTuple):
    """Loaded networks; None where evaluation asks for none. `features` is that of FID and KID."""

    features: FeatureNetwork
    clip_score: FeatureNetwork
    clip_fid: FeatureNetwork | None
    cmmd: FeatureNetwork | None
    dino: FeatureNetwork | None


def load_networks(evaluation: Evaluation, clips: Callable[[str], Clip], device: "torch.device", downloads: Downloads) -> Networks:
    """`clips` loads a CLIP by its reference. Raises: UserError for a model that is not to be had."""

    def tower(ref: str | None) -> FeatureNetwork | None:
        return clip_tower(ref, clips(ref)) if ref else None

    name = evaluation.features
    return Networks(
        features=inception(device, downloads) if name == "inception" else clip_tower(name, clips(name)),
        clip_score=clip_tower(evaluation.clip_score, clips(evaluation.clip_score)),
        clip_fid=tower(evaluation.clip_fid),
        cmmd=tower(evaluation.cmmd),
        dino=dino(evaluation.dino, device) if evaluation.dino else None,
    )


class View(NamedTuple):
    """A network at a resizing mode: images are turned into its features once for all that is measured with them.

    `distances` are keys of the card. `headline`: KID and the rest that goes with the FID; `by_resize`: the FID in this
    mode; `captions`: the CLIP score.
    """

    network: FeatureNetwork
    resize: str
    distances: dict[str, Distance]
    headline: bool
    by_resize: bool
    captions: bool


def views(evaluation: Evaluation, networks: Networks) -> list[View]:
    """All views of an evaluation, that of the FID first, each once: networks may be the same."""
    wanted: list[tuple[FeatureNetwork | None, str, str, Distance]] = [
        (networks.features, evaluation.resize, "fid", fid),
        (networks.clip_fid, OTHERS_RESIZE, "clip_fid", fid),
        (networks.cmmd, OTHERS_RESIZE, "cmmd", cmmd),
        (networks.dino, OTHERS_RESIZE, "fd_dino", fid),
    ]
    first, captions = _place(networks.features, evaluation.resize), _place(networks.clip_score, OTHERS_RESIZE)
    both = {_place(networks.features, mode): networks.features for mode in RESIZERS}
    found = {first: networks.features} | both | {captions: networks.clip_score}
    found |= {_place(network, resize): network for network, resize, _, _ in wanted if network}
    return [
        View(
            network,
            place[1],
            {name: distance for other, resize, name, distance in wanted if other and _place(other, resize) == place},
            headline=place == first,
            by_resize=place in both,
            captions=place == captions,
        )
        for place, network in found.items()
    ]


def _place(network: FeatureNetwork, resize: str) -> tuple[str, str, int]:
    return network.identity, resize, network.px
