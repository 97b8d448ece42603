"""How frozen models are named."""

import re
from typing import Annotated

from pydantic import AfterValidator


def _model_ref(value: str) -> str:
    if value.startswith("hf:") and not re.fullmatch(r"hf:[\w.-]+/[\w.-]+@[\w./-]+", value):
        raise ValueError(f"'{value}' must be hf:OWNER/NAME@REVISION; a commit hash is a revision that stays")
    if not value.startswith("hf:") and "@" in value:
        raise ValueError(f"'{value}' has a revision but is not hf:OWNER/NAME@REVISION")
    return value


ModelRef = Annotated[str, AfterValidator(_model_ref)]
