"""Hash everything, name what is damaged, and on request set aside what must be made again."""

from pathlib import Path
from typing import NamedTuple

from pipeline.errors import UserError
from pipeline.lock import DRIVER
from pipeline.runtime import progress
from pipeline.status.activity import held
from pipeline.verify.claims import Claim, claims
from pipeline.verify.repair import Remedy, remedy, set_aside

MEGA = 10**6


class Fault(NamedTuple):
    """A claim that does not hold, and why."""

    claim: Claim
    what: str

    def __str__(self) -> str:
        return f"{self.claim.file}: {self.what}"


def faults(folder: Path) -> list[Fault]:
    """Look at every file that something under `folder` vouches for.

    Raises: UserError if there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; nothing was verified")
    wanted = list(claims(folder))
    sizes = [_bytes(claim.file) for claim in wanted]
    found = []
    with progress("verifying", sum(sizes) // MEGA, "MB") as bar:
        done = 0
        for claim, size in zip(wanted, sizes, strict=True):
            if what := claim.fault():
                found.append(Fault(claim, what))
            bar.update((done + size) // MEGA - done // MEGA)
            done += size
    return found


def _bytes(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def run(folder: Path, repair: bool) -> None:
    """Print a line a fault, and with `repair` set aside what makes Snakemake and the steps take the damaged for done.

    Raises: UserError if there are faults and no `repair`, or with `repair` if a run is going on, or `folder` holds none.
    """
    if repair and not (folder / "run_config.json").is_file():
        raise UserError(f"{folder}: not the results of a run, which have a run_config.json; --repair needs all of them")
    if repair and (driver := held(DRIVER)):
        raise UserError(f"{folder}: a run is going on here, of {driver}; repair when it has ended")
    found = faults(folder)
    for fault in found:
        print(fault)
    if not found:
        print(f"{folder}: every file is as it was written")
        return
    if not repair:
        raise UserError(f"{folder}: {len(found)} faults; `python -m pipeline verify --repair` sets aside what is damaged")
    _repair(folder, [remedy(folder, fault.claim) for fault in found])


def _repair(folder: Path, remedies: list[Remedy]) -> None:
    for path in dict.fromkeys(path for each in remedies for path in each.aside):
        if to := set_aside(path):
            print(f"{path}: set aside as {to.name}")
    for note in dict.fromkeys(each.note for each in remedies if each.note):
        print(note)
    targets = list(dict.fromkeys(target for each in remedies for target in each.targets))
    if targets:
        print("Make just these again, with the options of your run, then give its usual command: what is below them reruns")
        print("only where their content differs.")
        print(f"  snakemake --cores all --rerun-incomplete -- {' '.join(targets)}")
