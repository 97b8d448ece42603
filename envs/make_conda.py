"""Write envs/pipeline.yaml, the conda environment of the rules, from envs/requirements.lock. `--check` only compares."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
HEAD = """# Made from requirements.lock by make_conda.py (make generated); do not edit.
channels:
  - conda-forge
  - nodefaults
dependencies:
  - python=3.11
  - pip
  - pip:
"""


def environment(lock: str) -> str:
    """The conda file's text: every package of the lock at its version, markers kept."""
    pins = [line.rstrip(" \\") for line in lock.splitlines() if line[:1].isalpha()]
    return HEAD + "".join(f'      - "{pin}"\n' for pin in pins)


def main() -> int:
    wanted = environment((HERE / "requirements.lock").read_text(encoding="utf-8"))
    target = HERE / "pipeline.yaml"
    if "--check" not in sys.argv[1:]:
        target.write_text(wanted, encoding="utf-8")
    elif target.read_text(encoding="utf-8") != wanted:
        print("error: envs/pipeline.yaml is not in step with requirements.lock; run `make generated`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
