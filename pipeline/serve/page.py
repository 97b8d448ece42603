"""The page: a form, a grid of pictures, and a line that says what was drawn or what is wrong."""

import shlex
from collections.abc import Sequence
from html import escape
from pathlib import Path
from random import randrange
from typing import Any

import gradio as gr

from pipeline.errors import UserError
from pipeline.serve.order import MAX_PROMPT, MAX_SEED, Order
from pipeline.serve.studio import FINAL, Drawn, Studio

CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
ROW = 4  # pictures beside one another
MAX_WAITING = 20  # orders
PROGRESS = gr.Progress()  # as the default of an argument it makes Gradio hand in the event's own
KEEP_SECONDS = 3600  # pictures of an hour ago are deleted


def theme() -> gr.themes.Base:
    """Plain, with the fonts of the system: none is fetched."""
    fonts = {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}
    plain = gr.themes.Default(primary_hue="teal", neutral_hue="slate", **fonts)
    return plain.set(button_primary_background_fill="*primary_700", button_primary_background_fill_hover="*primary_800")


def build(studio: Studio) -> gr.Blocks:
    """The page of a studio."""

    def draw(
        prompt: str, seed: float, steps: float, guidance: float, count: float, names: list[str], progress: Any = PROGRESS
    ) -> tuple[Any, str]:
        try:
            order = Order.of(prompt, seed, steps, guidance, count)
            drawn = []
            for name in [*names, FINAL]:
                done = (len(drawn), len(names) + 1)
                progress(done, desc=f"loading {name}", unit="models")
                studio.load(name)
                progress(done, desc=f"drawing with {name}", unit="models")
                drawn.append(studio.draw(order, name))
        except UserError as error:
            return gr.skip(), _fault(error)
        return _grid(drawn), _caption(studio, order, drawn)

    def look_up() -> tuple[Any, str]:
        try:
            choices = [(f"{stage.name}, {stage.px} px", stage.name) for stage in studio.stages()]
        except UserError as error:
            return gr.skip(), _fault(error)
        return gr.update(choices=choices, visible=bool(choices)), ""

    sampler = studio.about["sampler"]
    with gr.Blocks(title="Draw", analytics_enabled=False, delete_cache=(KEEP_SECONDS, KEEP_SECONDS)) as page:
        gr.Markdown(_heading(studio))
        example = "a red circle in the top left on a pink background"
        prompt = gr.Textbox(label="Prompt", placeholder=example, max_length=MAX_PROMPT, max_lines=4, autofocus=True)
        with gr.Row():
            count = gr.Number(4, label="Pictures", min_width=130)
            steps = gr.Number(sampler["steps"], label="Steps", min_width=130)
            guidance = gr.Number(sampler["guidance"], label="Guidance", step=0.5, min_width=130)
            dice = gr.Button("Random")
            seed = gr.Number(0, label="Seed", min_width=130, buttons=[dice])
        stages = gr.CheckboxGroup([], label="Compare with earlier stages", visible=False)
        button = gr.Button("Draw", variant="primary", size="lg")
        pictures = gr.Gallery(
            format="png", label="Pictures", show_label=False, object_fit="contain", buttons=["download", "fullscreen"],
            interactive=False, elem_id="pictures",
        )  # fmt: skip
        line = gr.Markdown(elem_id="line", latex_delimiters=[])
        gr.on(
            [button.click, prompt.submit], draw, [prompt, seed, steps, guidance, count, stages], [pictures, line],
            api_visibility="private", concurrency_limit=1, show_progress_on=pictures,
        )  # fmt: skip
        dice.click(lambda: randrange(MAX_SEED), None, seed, api_visibility="private")
        page.load(look_up, None, [stages, line], api_visibility="private", show_progress="hidden")
    return page.queue(max_size=MAX_WAITING)


def _heading(studio: Studio) -> str:
    about = studio.about
    stage = about["trained"].get("stage")
    parts = [str(studio.model), f"{about['px']} px", *([f"stage {stage}"] if stage else [])]
    return f"<h1>Draw</h1><p>{_text(' · '.join(parts))}</p>"


def _grid(drawn: Sequence[Drawn]) -> Any:
    """A column for each model and a row for each number, or one model's pictures in rows of four."""
    if len(drawn) == 1:
        pictures = drawn[0].pictures
        return gr.update(value=pictures, columns=min(len(pictures), ROW))
    rows = zip(*(one.pictures for one in drawn), strict=True)
    value = [(picture, one.model) for row in rows for picture, one in zip(row, drawn, strict=True)]
    return gr.update(value=value, columns=len(drawn))


def _caption(studio: Studio, order: Order, drawn: Sequence[Drawn]) -> str:
    """What was drawn, and the command that draws it again."""
    settings = f"Seed {order.seed}, {order.steps} steps, guidance {order.guidance:g}"
    models = ", ".join(f"{_text(one.model)} ({one.px} px) in {one.seconds:.1f} s" for one in drawn)
    command = f"python -m pipeline generate {shlex.quote(order.prompt)} --model {shlex.quote(str(studio.model))}"
    command += f" --seed {order.seed} --steps {order.steps} --guidance {order.guidance:g} --count {order.count}"
    return (
        f"<p><strong>{_text(order.prompt)}</strong></p><p>{settings}: {models}.</p>"
        f"<details><summary>As a command</summary><code>{_text(command)}</code></details>"
    )


def _fault(error: UserError) -> str:
    return f'<p role="alert">{_text(str(error))}</p>'


def _text(text: str) -> str:
    """For HTML within Markdown: a blank line would end the HTML."""
    return " ".join(escape(text).split())
