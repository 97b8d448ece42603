import numpy as np
import torch

from pipeline.train.samples import grid_image


def test_grid_places_images_row_by_row():
    images = torch.linspace(0, 1, 6)[:, None, None, None].expand(6, 3, 2, 5)
    pixels = np.asarray(grid_image(images))
    assert pixels.shape == (4, 20, 3)
    assert [pixels[0, 5 * column, 0] for column in range(4)] == [0, 51, 102, 153]
    assert [pixels[2, 5 * column, 0] for column in range(4)] == [204, 255, 255, 255]  # the last two places stay white


def test_few_images_make_one_short_row():
    assert grid_image(torch.zeros(2, 3, 4, 4)).size == (8, 4)
