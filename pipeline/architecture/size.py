"""How many numbers the network has, counted from its configuration without making it."""

from pipeline.architecture.config import NOISE_FREQUENCIES, BlockShape, MicroDiTConfig, backbone_shapes, mixer_shapes, text_hidden


def parameters(config: MicroDiTConfig) -> int:
    """Trainable numbers; buffers are not counted."""
    dim, patch = config.dim, config.patch_channels
    ends = (patch * dim + dim) + (dim * patch + patch) + (2 * dim * dim + 2 * dim) + dim
    noise = 2 * NOISE_FREQUENCIES * dim + dim + dim * dim + dim
    text = 2 * dim + 4 * dim * dim + 3 * dim * text_hidden(config)
    projections = _projection(config.caption_channels, dim) + _projection(dim, dim)
    blocks = sum(_block(shape, dim) for shape in (*mixer_shapes(config), *backbone_shapes(config)))
    return ends + noise + text + projections + _mixer_maps(config) + blocks


def _projection(dim_in: int, dim: int) -> int:
    """Two Linears with biases, and a norm between them."""
    return dim_in * dim + dim + dim + dim * dim + dim


def _mixer_maps(config: MicroDiTConfig) -> int:
    """Norms and Linears between the backbone's and the mixer's width: tokens in and out, and the text."""
    if config.mixer_depth == 0 or config.mixer_dim == config.dim:
        return 0
    return 3 * config.dim * config.mixer_dim + 2 * config.dim + config.mixer_dim


def _block(shape: BlockShape, condition: int) -> int:
    """One DiT block: three norms, two attentions, the FFN, and the modulation from the condition."""
    dim = shape.dim
    ffn = shape.experts * (2 * dim * shape.hidden + dim) if shape.experts else 3 * dim * shape.hidden
    return 3 * dim + 4 * dim * shape.attention + 4 * dim * dim + ffn + 6 * dim * condition + 6 * dim
