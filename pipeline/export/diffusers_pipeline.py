"""Text to image with a MicroDiT, as a pipeline of diffusers."""

from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from pipeline.architecture.config import at_resolution
from pipeline.diffusion.edm import EDM
from pipeline.export.drawing import draw_latents, noise_of, to_pictures
from pipeline.frozen.families import CLIP, SIGLIP, T5, family_of_type
from pipeline.frozen.text.encoder import TextEncoder
from pipeline.frozen.text.transformers import TOWERS
from pipeline.frozen.vae import Vae
from pipeline.model.microdit import weights_at

METHODS = {"EDMEulerScheduler": None, "EDMDPMSolverMultistepScheduler": "dpmpp_2m"}  # None: as the model says


class MicroDiTPipeline(DiffusionPipeline):
    """`pipe("a red circle", seed=0).images[0]` is the picture that `python -m pipeline generate` draws.

    `px` is the resolution, `sampler` holds steps, guidance, method and interval unless the call says otherwise. `frozen`
    names the autoencoder and the text encoder that the network was trained with: those which are not in the folder are
    loaded from the hub. `trained` says where the weights come from. Of the scheduler the noise levels are used; steps are
    Heun's, or another `method` of sampler. With an EDMDPMSolverMultistepScheduler in its place they are DPM-Solver++ 2M's.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["vae", "text_encoder", "tokenizer"]  # noqa: RUF012 - diffusers looks for a list here

    def __init__(
        self,
        transformer: Any,
        scheduler: Any,
        vae: Any = None,
        text_encoder: Any = None,
        tokenizer: Any = None,
        px: int | None = None,
        frozen: dict[str, Any] | None = None,
        sampler: dict[str, Any] | None = None,
        trained: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        frozen, sampler = frozen or {}, sampler or {"steps": 30, "guidance": 5.0}
        if vae is None:
            vae = hub_autoencoder(frozen.get("vae"), transformer.dtype)
        if text_encoder is None:
            text_encoder, tokenizer = hub_text_encoder(frozen.get("text_encoder"), transformer.dtype)
        self.register_modules(
            transformer=transformer.eval(), scheduler=scheduler, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer
        )
        self.register_to_config(px=px, frozen=frozen, sampler=sampler, trained=trained)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        seed: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Pictures of each prompt, in its order, `height` x `width` pixels, the trained size unless given.

        The noise is `latents`, standard normals [B, C, H, W]; or follows from `seed`, as in `python -m pipeline generate`;
        or is drawn with `generator`, or else with torch's own. `output_type`: pil; np, [B, H, W, 3] in [0, 1]; pt,
        [B, 3, H, W]; or latent. Raises: ValueError for values that the model cannot draw with.
        """
        prompts = [text for text in ([prompt] if isinstance(prompt, str) else prompt) for _ in range(num_images_per_prompt)]
        device, autoencoder = self._execution_device, self._autoencoder()
        rows, columns = self._size(height, width, autoencoder.factor)
        shape = (self.transformer.config.in_channels, rows, columns)
        noise = self._noise(shape, len(prompts), seed, generator, latents).to(device, torch.float32)
        network = self._at_side(rows) if rows == columns else self.transformer
        made = self._latents(network, noise, self._text(prompts), num_inference_steps, guidance_scale)
        images = made if output_type == "latent" else self._shown(autoencoder.decode(made), output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _autoencoder(self) -> Vae:
        """In float32 where its config says, or does not say, that its activations need that."""
        kind, config = type(self.vae).__name__, self.vae.config
        if kind == "AutoencoderKL" and config.get("force_upcast", True) and self.vae.dtype != torch.float32:
            self.vae.float()
        return Vae(self.vae)

    def _size(self, height: int | None, width: int | None, factor: int) -> tuple[int, int]:
        """Of the latent."""
        config = self.transformer.config
        trained, unit = config.input_size * factor, factor * config.patch_size
        height, width = height or width or trained, width or height or trained
        if height % unit or width % unit:
            raise ValueError(f"height {height} and width {width}: give multiples of {unit}; the model was trained at {trained}")
        return height // factor, width // factor

    def _at_side(self, side: int) -> Any:
        """The same weights, not copied, for square latents of another side: positions are squeezed into what was trained."""
        if side == self.transformer.config.input_size:
            return self.transformer
        config = at_resolution(self.transformer.config, side)
        with torch.device("meta"):
            other = type(self.transformer)(architecture=config.to_dict())
        other.load_state_dict(weights_at(config, self.transformer.state_dict()), assign=True)
        return other.eval()

    def _noise(self, shape: tuple[int, ...], count: int, seed: int | None, generator: Any, latents: Tensor | None) -> Tensor:
        if latents is not None:
            if tuple(latents.shape) != (count, *shape):
                raise ValueError(f"latents are {tuple(latents.shape)}; give standard normals of {(count, *shape)}")
            return latents
        if seed is not None:
            return noise_of(shape, seed, list(range(count)))
        return randn_tensor((count, *shape), generator=generator, device=self._execution_device, dtype=torch.float32)

    def _text(self, prompts: list[str]) -> Tensor:
        family = family_of_type(self.text_encoder.config.model_type) or "decoder"
        config = self.transformer.config
        tower = TOWERS[family](self.text_encoder, self.tokenizer)
        embeddings, _ = TextEncoder(tower, config.caption_length, config.drop_text_padding).encode(prompts)
        return embeddings.to(self._execution_device)

    def _latents(self, network: Any, noise: Tensor, text: Tensor, steps: int | None, guidance: float | None) -> Tensor:
        own, levels = dict(self.config.sampler), self.scheduler.config
        kind = type(self.scheduler).__name__
        if kind not in METHODS:
            raise ValueError(f"scheduler {kind}: not known here; put in one of {', '.join(METHODS)}")
        edm = EDM(**{name: levels[name] for name in ("sigma_data", "sigma_min", "sigma_max", "rho")})
        given = {"steps": steps, "guidance": guidance, "method": METHODS[kind]}
        sampler = own | {name: value for name, value in given.items() if value is not None}
        with self.progress_bar(total=sampler["steps"]) as bar:
            return draw_latents(network, edm, noise, text, sampler, lambda *_: bar.update())

    def _shown(self, images: Tensor, output_type: str) -> Any:
        if output_type == "pil":
            return to_pictures(images)
        if output_type not in ("np", "pt"):
            raise ValueError(f"output_type {output_type!r}: give pil, np, pt or latent")
        return images if output_type == "pt" else images.permute(0, 2, 3, 1).cpu().numpy()


def hub_autoencoder(reference: str | None, dtype: torch.dtype) -> Any:
    """The autoencoder that a reference hf:OWNER/NAME@REVISION names. Raises: ValueError if there is no reference."""
    place = hub_place("vae", reference)
    try:
        config, folder = diffusers.AutoencoderKL.load_config(**place), {}
    except OSError:  # a whole pipeline
        folder = {"subfolder": "vae"}
        config = diffusers.AutoencoderKL.load_config(**place, **folder)
    kind = getattr(diffusers, config["_class_name"])
    return kind.from_pretrained(**place, **folder, use_safetensors=True).to(dtype).eval()


def hub_text_encoder(reference: str | None, dtype: torch.dtype) -> tuple[Any, Any]:
    """The text encoder that a reference names, and its tokenizer. Raises: ValueError if there is no reference, or it leads
    to a checkpoint of open_clip, which another package reads."""
    from huggingface_hub import file_exists

    place = hub_place("text_encoder", reference)
    name, revision = place["pretrained_model_name_or_path"], place["revision"]
    if file_exists(name, "open_clip_config.json", revision=revision):
        raise ValueError(
            f"text_encoder {reference}: is open_clip's; export the model again with --with-frozen, which turns it into one "
            "that transformers reads"
        )
    kind = transformers.AutoConfig.from_pretrained(**place).model_type
    known = (CLIP | SIGLIP | T5).get(kind, "AutoModel")
    model = getattr(transformers, known).from_pretrained(**place, use_safetensors=True)
    return model.to(dtype).eval(), transformers.AutoTokenizer.from_pretrained(**place)


def hub_place(name: str, reference: str | None) -> dict[str, Any]:
    """Arguments of from_pretrained."""
    if not (reference or "").startswith("hf:"):
        raise ValueError(f"{name}: not in this folder and not named; pass {name}=… to from_pretrained, the one of its training")
    model, _, revision = reference.removeprefix("hf:").partition("@")
    return {"pretrained_model_name_or_path": model, "revision": revision or None}
