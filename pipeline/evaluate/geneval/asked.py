"""Which of GenEval's prompts are drawn, and how often. Nothing here knows of detectors."""

from dataclasses import dataclass
from functools import cached_property

from pipeline.config.evaluation import GenEval
from pipeline.download.files import Files
from pipeline.errors import UserError
from pipeline.evaluate.drawing import Drawing
from pipeline.evaluate.geneval import scenes
from pipeline.evaluate.geneval.prompts import Prompt, Prompts, read_prompts
from pipeline.evaluate.prompt_files import fetch, spread
from pipeline.fingerprint import digest


@dataclass(frozen=True)
class Asked:
    """`prompts` are all that the file has."""

    config: GenEval
    prompts: Prompts

    @classmethod
    def load(cls, config: GenEval, files: Files) -> "Asked":
        """Raises: UserError for a file of prompts that cannot be had or read, or is another one than configured."""
        return cls(config, _prompts(config, files))

    @cached_property
    def rows(self) -> list[Prompt]:
        """The prompts that are drawn."""
        rows = self.prompts.rows
        return [rows[i] for i in spread([row.tag for row in rows], self.config.limit)]

    @cached_property
    def of_images(self) -> list[Prompt]:
        """The prompt of every picture."""
        return [row for row in self.rows for _ in range(self.config.images_a_prompt)]

    @property
    def drawing(self) -> Drawing:
        """The pictures: a folder of their own for every list of prompts."""
        texts = [row.prompt for row in self.of_images]
        return Drawing(f"geneval-{digest(texts)}", "geneval", "geneval", texts)


def _prompts(config: GenEval, files: Files) -> Prompts:
    key = "evaluation.geneval.prompts"
    if config.prompts != scenes.NAME:
        file = fetch(key, config.prompts, files, config.prompts_sha256)
        return read_prompts(file, f"{key}: {config.prompts}")._replace(source=config.prompts)
    found = scenes.scene_prompts()
    if config.prompts_sha256 not in (None, found.sha256):
        raise UserError(f"{key}: the embedded prompts have sha256 {found.sha256}, not {config.prompts_sha256}")
    return found
