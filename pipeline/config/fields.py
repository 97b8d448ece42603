"""What a section of the configuration is made of: keys with a role, and which of them decide the artifacts."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from pipeline.fingerprint import canonical_json


def result(default: Any = ..., doc: str = "", *, neutral: bool = False, **bounds: Any) -> Any:
    """`neutral`: at its default the key changes nothing, so it is left out of params and fingerprints. For keys that a
    release adds: what was made before stays valid."""
    extra = {"role": "result", "neutral": default} if neutral else {"role": "result"}
    return Field(default, description=doc, json_schema_extra=extra, **bounds)


def runtime(default: Any = ..., doc: str = "", **bounds: Any) -> Any:
    return Field(default, description=doc, json_schema_extra={"role": "runtime"}, **bounds)


def report(default: Any = ..., doc: str = "", **bounds: Any) -> Any:
    return Field(default, description=doc, json_schema_extra={"role": "report"}, **bounds)


Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class Section(BaseModel):
    """A part of the configuration. Unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    def results(self) -> dict[str, Any]:
        """The keys that decide the artifacts, ready for `canonical_json`, without those at a `neutral` value."""
        kept = {}
        for name, field in type(self).model_fields.items():
            extra, value = field.json_schema_extra or {}, getattr(self, name)
            if extra.get("role") == "result" and not ("neutral" in extra and value == extra["neutral"]):
                kept[name] = _plain(value)
        return kept

    def to_json(self) -> str:
        """One canonical JSON string of the result keys: what a rule passes to its command."""
        return canonical_json(self.results())


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.results()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
