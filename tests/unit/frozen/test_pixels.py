import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference

from pipeline.frozen.pixels import square, unit_tensor

SIDE = st.integers(8, 150)


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@settings(max_examples=60, deadline=None)
@given(SIDE, SIDE, st.sampled_from([8, 17, 32, 64]))
def test_square_is_torchvisions_resize_and_centre_crop(width: int, height: int, px: int) -> None:
    image = noise(width, height)
    resized = reference.resize(image, px, InterpolationMode.BICUBIC)
    expected = reference.center_crop(resized, [px, px])
    assert np.array_equal(np.asarray(square(image, px)), np.asarray(expected))


def test_an_image_of_the_right_size_is_left_as_it_is() -> None:
    image = noise(32, 32)
    assert square(image, 32).tobytes() == image.tobytes()


def test_greyscale_becomes_three_equal_channels() -> None:
    values = np.asarray(square(noise(40, 30).convert("L"), 16))
    assert values.shape == (16, 16, 3) and (values[..., 0] == values[..., 2]).all()


def test_unit_tensor_is_channels_first_in_0_to_1() -> None:
    image = Image.new("RGB", (4, 3), (255, 0, 51))
    tensor = unit_tensor([image, image])
    assert tensor.shape == (2, 3, 3, 4) and tensor.dtype == torch.float32
    assert torch.equal(tensor[0, :, 0, 0], torch.tensor([1.0, 0.0, 0.2]))
