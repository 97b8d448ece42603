"""A model folder to the Hugging Face hub."""

import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError
from pipeline.export.folder import CARD, CONFIG, INDEX, PARTS, PIPELINE_CODE, WEIGHTS, read_index

TOKEN = "HF_TOKEN"
NEEDED = (INDEX, CARD, CONFIG, WEIGHTS, f"{PIPELINE_CODE}.py")


def run(repo: str, model: Path, private: bool, dry_run: bool) -> None:
    """Make the repository `repo` (OWNER/NAME) if there is none, and commit the folder's files to it. With `dry_run` print
    what would be sent and send nothing.

    The token is that of the environment variable HF_TOKEN, and is never printed. Raises: UserError if the folder is no
    whole model folder, there is no token, or the hub refuses.
    """
    _check(repo, model)
    files = list(listed(model))
    print(_told(repo, model, files, private))
    if dry_run:
        print("Nothing was sent: this was a dry run.")
    elif not (token := os.environ.get(TOKEN)):
        raise UserError(f"push-to-hub: no token; put one that may write to {repo} into the environment variable {TOKEN}")
    else:
        print(f"Sent: {_push(repo, model, files, private, token)}")


def _check(repo: str, model: Path) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{repo}: not the name of a repository, give OWNER/NAME ({error})") from error
    if "/" not in repo:
        raise UserError(f"{repo}: give the owner too, OWNER/NAME")
    read_index(model)
    if missing := [name for name in NEEDED if not (model / name).is_file()]:
        raise UserError(f"{model / missing[0]}: missing; export the model again")


def listed(model: Path) -> Iterator[Path]:
    """Files of a model folder, relative to it: those at its top and in the parts that its index names."""
    index = read_index(model)
    parts = [name for name in PARTS if (index.get(name) or [None])[0]]
    places = [model / name for name in (INDEX, CARD, f"{PIPELINE_CODE}.py")]
    for part in parts:
        places += sorted(file for file in (model / part).iterdir() if file.is_file() and not file.name.startswith("."))
    return (file.relative_to(model) for file in places)


def _told(repo: str, model: Path, files: list[Path], private: bool) -> str:
    sizes = {file: (model / file).stat().st_size for file in files}
    lines = [f"{size:>15,}  {file}" for file, size in sizes.items()]
    visible = "private" if private else "public"
    head = f"{len(files)} files to {repo} ({visible} if it is made now), in bytes:"
    card = (model / CARD).read_text(encoding="utf-8").strip()
    return "\n".join([head, *lines, f"{sum(sizes.values()):>15,}  in all", "", f"What {CARD} says:", "", card, ""])


def _push(repo: str, model: Path, files: list[Path], private: bool, token: str) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(token=token)
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        names = [str(file) for file in files]
        return str(api.upload_folder(repo_id=repo, folder_path=model, allow_patterns=names, commit_message="A trained model"))
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).replace(token, "…").partition("\n")[0]
        raise UserError(f"push-to-hub: {repo} was not written ({reason}); run it again") from error
