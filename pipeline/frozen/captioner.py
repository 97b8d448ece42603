"""The frozen captioner: a vision-encoder-decoder or an image-text-to-text model of transformers."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image

from pipeline.frozen.captioners.code import model_class
from pipeline.frozen.captioners.families import ImagesAlone, family_of
from pipeline.frozen.captioners.words import Decoding, Words, whole_sentences
from pipeline.frozen.models import Place, load_part, load_tokenizer, load_weights, locate


class Caption(NamedTuple):
    """`cut`: the model had more to say than `max_tokens`; it ends with its last whole sentence if it has one."""

    text: str
    cut: bool


class Captioner:
    """Writes captions. `prompts` are those it can be given: [None] for a model that takes none."""

    def __init__(
        self, place: Place, model: torch.nn.Module, family: ImagesAlone, prompts: Sequence[str], decoding: Decoding
    ) -> None:
        self.prompts = family.prompts(prompts)
        self._place = place
        self._model = model
        self._family = family
        self._decoding = decoding
        for rules in _generation(model):
            rules.forced_eos_token_id = None  # an end that is forced hides that a caption is cut
        self._ends = torch.tensor(sorted(set(_ends(model))), device=model.device)

    @torch.no_grad()
    def write(self, images: Sequence[Image.Image], keys: Sequence[str], prompt: str | None, sample: int = 0) -> list[Caption]:
        """RGB images of any size to captions, "" where the model says nothing.

        Drawn words depend on the seed, an image's key, the prompt and the number of the sample, and on nothing else.
        Raises: UserError if a prompt with its image leaves no room for `max_tokens`.
        """
        inputs = self._on_device(self._family.inputs(list(images), prompt))
        words = Words(self._decoding, [f"{sample}\0{prompt or ''}\0{key}" for key in keys])
        room = self._room(inputs)
        # Beams and drawing by the library would depend on the batch; other rules of the checkpoint, such as a penalty on
        # repetition, stay.
        ids = self._model.generate(
            **inputs, do_sample=False, num_beams=1, max_new_tokens=room, logits_processor=[words], use_cache=True
        )
        ids = ids[:, ids.shape[1] - words.count :]  # some models repeat the prompt, or begin with a start token
        cut = [words.count == room and not ended for ended in torch.isin(ids, self._ends).any(1).tolist()]
        texts = [" ".join(text.split()) for text in self._family.texts(ids, prompt)]
        return [Caption(whole_sentences(text) if over else text, over) for text, over in zip(texts, cut, strict=True)]

    def _on_device(self, inputs: Any) -> dict[str, Any]:
        """Images in the model's dtype."""
        device, dtype = self._model.device, self._model.dtype
        return {key: value.to(device, dtype if value.is_floating_point() else value.dtype) for key, value in inputs.items()}

    def _room(self, inputs: dict[str, Any]) -> int:
        """Tokens a caption can have at most: fewer than asked for where a model has few positions."""
        wanted, config = self._decoding.max_tokens, self._model.config
        positions = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
        if positions is None:
            return wanted
        prompt = 0 if config.is_encoder_decoder or "input_ids" not in inputs else inputs["input_ids"].shape[1]
        if prompt and prompt + wanted > positions:
            raise self._place.fault(
                f"image and prompt take {prompt} of its {positions} tokens; captioning.max_tokens can be {positions - prompt}"
            )
        return min(wanted, positions - max(prompt, 1))


def _generation(model: torch.nn.Module) -> Iterator[Any]:
    """Rules of generation, of every part of the model that may write the caption."""
    return filter(None, (getattr(part, "generation_config", None) for part in model.modules()))


def _ends(model: torch.nn.Module) -> Iterator[int]:
    """Tokens with which a caption ends."""
    for rules in _generation(model):
        ids = rules.eos_token_id
        yield from ids if isinstance(ids, list) else [] if ids is None else [ids]
    text = model.config.get_text_config(decoder=True)
    if (separator := getattr(text, "sep_token_id", None)) is not None:  # BLIP's end
        yield separator


def load_captioner(
    ref: str,
    device: torch.device,
    prompts: Sequence[str],
    decoding: Decoding,
    dtype: torch.dtype = torch.float32,
    remote_code: bool = False,
) -> Captioner:
    """`remote_code`: run the code that comes with the model.

    Raises: UserError if the reference leads to no such model with its processor, or a prompt is not one it takes.
    """
    place = locate(ref)
    is_pair = place.config.get("model_type") == "vision-encoder-decoder"
    load = _vision_encoder_decoder if is_pair else _image_text_to_text
    model, family = load(place, device, dtype, remote_code)
    return Captioner(place, model, family, prompts, decoding)


def _vision_encoder_decoder(
    place: Place, device: torch.device, dtype: torch.dtype, remote_code: bool
) -> tuple[torch.nn.Module, ImagesAlone]:
    from transformers import AutoImageProcessor, VisionEncoderDecoderModel

    family = ImagesAlone(load_part(place, AutoImageProcessor), load_tokenizer(place))
    return load_weights(place, VisionEncoderDecoderModel, device, dtype), family


def _image_text_to_text(
    place: Place, device: torch.device, dtype: torch.dtype, remote_code: bool
) -> tuple[torch.nn.Module, ImagesAlone]:
    from transformers import AutoProcessor

    cls = model_class(place, remote_code)
    processor = load_part(place, AutoProcessor, remote_code)
    model = load_weights(place, cls, device, dtype, trust_remote_code=remote_code)
    return model, family_of(place, model.config, processor)
