"""A stage that is given floating-point operations instead of images: what the arms of an ablation have in common."""

from pipeline.config.steps import TrainSlice
from pipeline.dataset import Manifest
from pipeline.errors import UserError
from pipeline.train.buckets import flops_an_image
from pipeline.train.network import architecture


def within_budget(slice_: TrainSlice, manifest: Manifest) -> TrainSlice:
    """With as many whole batches as `training_flops` pays for, by the count of `pipeline.architecture.flops`; unchanged where
    no budget is given.

    Raises: UserError if it pays for no batch, or for no more than the warm-up.
    """
    if slice_.training_flops is None:
        return slice_
    stage = slice_.stage
    flops = flops_an_image(architecture(slice_, manifest), manifest, stage, slice_.name)
    images = int(slice_.training_flops / (flops * stage.batch_images)) * stage.batch_images
    if images <= stage.warmup_images:
        raise UserError(
            f"ablation.training_flops: {slice_.training_flops:g} pays for {images} images of stage {slice_.name}, of which "
            f"{stage.warmup_images} are warm-up; an image takes {flops:.3g}, give more"
        )
    return slice_.model_copy(update={"stage": stage.model_copy(update={"images": images})})
