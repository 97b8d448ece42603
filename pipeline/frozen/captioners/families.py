"""Families of captioners: how images and a prompt become a model's inputs, and its tokens a text."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from pipeline.frozen.models import Place

# What is written around a prompt where a checkpoint brings no chat template, by the model's type and its decoder's, as its
# authors document it. Other decoders were trained with other words, so none is guessed.
FORMS = {
    ("llava", "llama"): "USER: {image}\n{prompt} ASSISTANT:",
    ("llava_next", "mistral"): "[INST] {image}\n{prompt} [/INST]",
    ("paligemma", "gemma"): "{image}{prompt}",  # such as `caption en`
    ("paligemma", "gemma2"): "{image}{prompt}",
}
WITHOUT_PROMPT = ("blip", "blip-2", "git")
TASK = re.compile(r"<[A-Z_]+>")


class ImagesAlone:
    """Vision-encoder-decoders, BLIP, BLIP-2 and GIT, which caption without a prompt."""

    def __init__(self, processor: Any, tokenizer: Any) -> None:
        self._processor = processor
        self._tokenizer = tokenizer

    def prompts(self, wanted: Sequence[str]) -> list[str | None]:
        """One caption an image (None: no prompt), whatever is asked for."""
        return [None]

    def inputs(self, images: list[Image.Image], prompt: str | None) -> Mapping[str, Tensor]:
        """RGB images to the model's keyword arguments."""
        return self._processor(images=images, return_tensors="pt")

    def texts(self, ids: Tensor, prompt: str | None) -> list[str]:
        """Tokens [B, L] to B texts."""
        return self._tokenizer.batch_decode(ids, skip_special_tokens=True)


class Prompted(ImagesAlone):
    """Models that take an image inside of a text. `form` has places for {image} and {prompt}."""

    def __init__(self, processor: Any, form: str) -> None:
        super().__init__(processor, processor.tokenizer)
        self._tokenizer.padding_side = "left"  # generation goes on at the right end
        self._form = form

    def prompts(self, wanted: Sequence[str]) -> list[str | None]:
        return list(wanted)

    def inputs(self, images: list[Image.Image], prompt: str | None) -> Mapping[str, Tensor]:
        text = self._form.format(image=self._processor.image_token, prompt=prompt)
        nested = [[image] for image in images]
        return self._processor(text=[text] * len(images), images=nested, padding=True, return_tensors="pt")


class Chat(Prompted):
    """Models whose processor has a chat template."""

    def __init__(self, processor: Any) -> None:
        super().__init__(processor, "")

    def inputs(self, images: list[Image.Image], prompt: str | None) -> Mapping[str, Tensor]:
        chats = [[{"role": "user", "content": [{"type": "image", "image": i}, {"type": "text", "text": prompt}]}] for i in images]
        options = {"padding": True, "return_tensors": "pt"}
        return self._processor.apply_chat_template(
            chats, add_generation_prompt=True, tokenize=True, return_dict=True, processor_kwargs=options
        )


class Florence(ImagesAlone):
    """Florence-2 (arXiv 2311.06242): prompts are tasks, which its processor turns into words, and answers into text."""

    def __init__(self, place: Place, processor: Any) -> None:
        super().__init__(processor, processor.tokenizer)
        self._place = place

    def prompts(self, wanted: Sequence[str]) -> list[str | None]:
        for prompt in wanted:
            kind = self._processor.tasks_answer_post_processing_type.get(prompt, "pure_text")
            if not TASK.fullmatch(prompt) or kind != "pure_text":
                tasks = "<CAPTION>, <DETAILED_CAPTION> or <MORE_DETAILED_CAPTION>"
                raise self._place.fault(f"takes a task such as {tasks} in captioning.prompts, found '{prompt}'")
        return list(wanted)

    def inputs(self, images: list[Image.Image], prompt: str | None) -> Mapping[str, Tensor]:
        return self._processor(text=[prompt] * len(images), images=images, return_tensors="pt")

    def texts(self, ids: Tensor, prompt: str | None) -> list[str]:
        plain = super().texts(ids, prompt)
        return [self._processor.post_process_generation(text=text, task=prompt)[prompt] for text in plain]


def family_of(place: Place, config: Any, processor: Any) -> ImagesAlone:
    """By the loaded model's configuration. Raises: UserError for a model without a chat template or a known form."""
    if not hasattr(processor, "tokenizer"):
        raise place.fault("no processor of images and texts beside the weights")
    if config.model_type in WITHOUT_PROMPT:
        return ImagesAlone(processor, processor.tokenizer)
    if config.model_type == "florence2":
        return Florence(place, processor)
    if getattr(processor, "chat_template", None):
        return Chat(processor)
    decoder = config.get_text_config(decoder=True).model_type
    if form := FORMS.get((config.model_type, decoder)):
        return Prompted(processor, form)
    raise place.fault("its processor has no chat template; put the chat_template.jinja of its authors beside it")
