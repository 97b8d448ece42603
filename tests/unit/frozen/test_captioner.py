"""Every family of captioners, in small models with random weights, loaded as any user's model would be."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from pipeline.errors import UserError
from pipeline.frozen.captioner import Captioner, Decoding, load_captioner
from tests.unit.encode.small_shards import picture
from tests.unit.frozen import captioner_models
from tests.unit.frozen.captioner_models import FAMILIES, SPECIAL, WORDS
from tests.unit.frozen.small_models import save_clip

CPU = torch.device("cpu")
PROMPT = "Describe this image"
# Of several shapes, so that prompts of models that cut images into tiles, or take them as they are, differ in length.
PICTURES = [picture(n, (40 + 24 * (n % 3), 48)) for n in range(5)] + [Image.new("RGB", (32, 32))]
KEYS = [f"k{n}" for n in range(len(PICTURES))]
WITHOUT_TEMPLATE = {
    "bare llava": lambda folder: captioner_models.save_llava(folder, template=None),
    "bare llava-next": lambda folder: captioner_models.save_llava_next(folder, template=None),
}
# What a user writes by hand who follows a model's page; None: the image alone.
CHAT = f"user <image> {PROMPT} assistant"
QWEN_CHAT = f"user <|vision_start|> <|image_pad|> <|vision_end|> {PROMPT} assistant"
BY_HAND = {
    "blip": None, "blip-2": None, "git": None, "llava": CHAT, "llava-next": CHAT, "idefics3": CHAT,
    "qwen2-vl": QWEN_CHAT, "qwen2.5-vl": QWEN_CHAT, "florence-2": "<CAPTION>", "paligemma": f"<image>{PROMPT}",
    "bare llava": f"USER: <image>\n{PROMPT} ASSISTANT:", "bare llava-next": f"[INST] <image>\n{PROMPT} [/INST]",
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captioners")
    for name, save in (FAMILIES | WITHOUT_TEMPLATE).items():
        save(folder / name)
    return folder


def load(models: Path, name: str, prompts: list[str] | None = None, dtype: torch.dtype = torch.float32, **decoding) -> Captioner:
    prompts = prompts or ["<CAPTION>" if name == "florence-2" else PROMPT]
    return load_captioner(str(models / name), CPU, prompts, Decoding(**{"max_tokens": 12} | decoding), dtype)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_caption_is_the_same_in_any_batch_and_order(models: Path, name: str, temperature: float) -> None:
    captioner = load(models, name, temperature=temperature, top_p=0.9)
    (prompt,) = captioner.prompts
    together = captioner.write(PICTURES, KEYS, prompt)
    assert together == captioner.write(PICTURES[:2], KEYS[:2], prompt) + captioner.write(PICTURES[2:], KEYS[2:], prompt)
    assert together[::-1] == captioner.write(PICTURES[::-1], KEYS[::-1], prompt)
    assert together == [captioner.write([i], [k], prompt)[0] for i, k in zip(PICTURES, KEYS, strict=True)]
    assert len({caption.text for caption in together}) > 3
    words = re.sub(r"([.!?])", r" \1 ", " ".join(caption.text for caption in together)).split()
    assert set(words) <= set(WORDS) - set(SPECIAL)


@pytest.mark.parametrize("name", BY_HAND)
def test_a_caption_is_that_of_the_documented_call(models: Path, name: str) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, processor = (cls.from_pretrained(models / name) for cls in (AutoModelForImageTextToText, AutoProcessor))
    captioner = load(models, name)
    for image, caption in zip(PICTURES, captioner.write(PICTURES, KEYS, captioner.prompts[0]), strict=True):
        text = {"text": [BY_HAND[name]]} if BY_HAND[name] else {}
        inputs = processor(images=[image], **text, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=13, do_sample=False, num_beams=1)
        start = 0 if not text or name == "florence-2" else inputs["input_ids"].shape[1]
        expected = " ".join(processor.tokenizer.decode(ids[0, start:], skip_special_tokens=True).split())
        assert expected.startswith(caption.text) if caption.cut else expected == caption.text


@pytest.mark.parametrize("name", ["pair", "blip", "florence-2", "llava", "qwen2.5-vl"])
def test_bfloat16_is_the_dtype_of_weights_and_images(models: Path, name: str) -> None:
    captioner = load(models, name, dtype=torch.bfloat16)
    assert {p.dtype for p in captioner._model.parameters()} == {torch.bfloat16} and not captioner._model.training
    assert len({caption.text for caption in captioner.write(PICTURES, KEYS, captioner.prompts[0])}) > 3


@pytest.mark.parametrize("name", ["blip", "llava"])
def test_drawn_captions_depend_on_seed_key_prompt_and_sample(models: Path, name: str) -> None:
    captioner, image = load(models, name, temperature=1.0, seed=1), PICTURES[:1]
    (prompt,) = captioner.prompts
    first = captioner.write(image, ["a"], prompt)
    assert first == load(models, name, temperature=1.0, seed=1).write(image, ["a"], prompt)
    assert first != captioner.write(image, ["b"], prompt)
    assert first != captioner.write(image, ["a"], prompt, sample=1)
    assert first != load(models, name, temperature=1.0, seed=2).write(image, ["a"], prompt)
    assert first != load(models, name).write(image, ["a"], prompt)


def test_another_prompt_gives_another_caption(models: Path) -> None:
    captioner = load(models, "llava", ["Describe this image", "What is in this image"])
    short, long = (captioner.write(PICTURES, KEYS, prompt) for prompt in captioner.prompts)
    assert captioner.prompts == ["Describe this image", "What is in this image"] and short != long


@pytest.mark.parametrize("name", ["pair", "blip", "blip-2", "git"])
def test_models_without_a_prompt_write_one_caption(models: Path, name: str) -> None:
    assert load(models, name, ["short", "long"]).prompts == [None]


def test_a_caption_that_is_too_long_ends_with_its_last_sentence(models: Path) -> None:
    """Drawn words of a model that says anything, `.` among it: some captions end by themselves, some are cut."""
    captioner = load(models, "llava", temperature=5.0, max_tokens=40)
    keys = [f"{n}" for n in range(40)]
    captions = captioner.write(PICTURES[:1] * 40, keys, PROMPT)
    cut, whole = ([c.text for c in captions if c.cut == wanted] for wanted in (True, False))
    ended = [text for text in cut if any(mark in text for mark in ".!?")]
    assert whole and ended and all(text.endswith((".", "!", "?")) for text in ended)
    assert any(not text.endswith((".", "!", "?")) for text in whole)


def test_a_forced_end_does_not_hide_that_a_caption_is_cut(models: Path) -> None:
    captions = load(models, "florence-2", max_tokens=4).write(PICTURES, KEYS, "<CAPTION>")
    assert any(caption.cut for caption in captions)


def test_few_positions_shorten_a_caption(models: Path) -> None:
    for name, words in (("pair", 9), ("blip", 19)):
        longest = max(len(caption.text.split()) for caption in load(models, name, max_tokens=99).write(PICTURES, KEYS, None))
        assert longest <= words


def test_a_prompt_that_leaves_no_room_is_an_error(models: Path) -> None:
    with pytest.raises(UserError, match=r"image and prompt take 21 of its 256 tokens; captioning\.max_tokens can be 235"):
        load(models, "llava", max_tokens=236).write(PICTURES, KEYS, PROMPT)
    load(models, "llava", max_tokens=235).write(PICTURES[:1], KEYS[:1], PROMPT)


@pytest.mark.parametrize("prompt", ["Describe this image", "<OD>", "<CAPTION_TO_PHRASE_GROUNDING>", "<CAPTION> in short"])
def test_florence_takes_tasks_that_answer_with_a_text(models: Path, prompt: str) -> None:
    tasks = ["<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>"]
    assert load(models, "florence-2", tasks).prompts == tasks
    with pytest.raises(UserError, match=r"takes a task such as <CAPTION>.* in captioning\.prompts, found"):
        load(models, "florence-2", ["<CAPTION>", prompt])


def test_a_model_without_template_and_known_form_is_named(models: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(models / "qwen2-vl", tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r"no chat template; put the chat_template\.jinja") as caught:
        load(tmp_path, "model")
    assert str(folder) in str(caught.value)


def test_other_classes_and_missing_processors_are_named(models: Path, tmp_path: Path) -> None:
    save_clip(tmp_path / "clip")
    processor = shutil.ignore_patterns("processor_config.json", "chat_template.jinja", "tokenizer*")
    for name in ("llava", "pair"):
        shutil.copytree(models / name, tmp_path / name, ignore=processor)
    for name in ("clip", "llava", "pair"):
        with pytest.raises(UserError) as caught:
            load(tmp_path, name)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["llava-next", "qwen2-vl", "qwen2.5-vl"])
def test_prompts_of_different_lengths_are_filled_up_on_the_left(models: Path, name: str) -> None:
    mask = load(models, name)._family.inputs(PICTURES, PROMPT)["attention_mask"]
    assert len(set(mask.sum(1).tolist())) > 1 and mask[:, -1].all() and (mask.diff(dim=1) >= 0).all()
