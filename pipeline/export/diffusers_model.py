"""MicroDiT as a model of diffusers."""

from typing import Any

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from pipeline.architecture.config import MicroDiTConfig
from pipeline.model.microdit import MicroDiT


class MicroDiTModel(MicroDiT, ModelMixin, ConfigMixin):
    """The network F of the EDM preconditioning, with the tensor names of the official code.

    `config` is the architecture; config.json holds it under `architecture`. Of float32 weights `forward` is called as it
    is, of others under torch.autocast.
    """

    config: MicroDiTConfig = None  # in place of the property of ConfigMixin, whose dictionary has one key

    @register_to_config
    def __init__(self, architecture: dict[str, Any]) -> None:
        super().__init__(MicroDiTConfig.from_dict(dict(architecture)))

    def init_weights(self, seed: int) -> None:
        """Left out where diffusers makes a model without values, to fill it from a file."""
        if not self.x_embedder.proj.weight.is_meta:
            super().init_weights(seed)
