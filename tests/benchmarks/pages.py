"""Figures and tables of README and docs, made anew: a block that follows a comment with a command is what the command
prints.

    python tests/benchmarks/pages.py           # runs the commands, and writes the pages
    python tests/benchmarks/pages.py --print   # shows them instead

The commands run one after the other in an empty directory, with an empty cache. `tests/test_pages.py` runs them, too,
and compares. Three of the blocks are printed by this script: `machine`, `metrics` and `columns`.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from raymu import devices, row
from raymu.evaluation import metrics

REPOSITORY = Path(__file__).parent.parent.parent
PAGES = [REPOSITORY / name for name in ("README.md", "docs/tutorial.md", "docs/methods.md", "docs/metrics.md")]
BLOCK = re.compile(
    r"(?<=<!-- )(?P<command>(?:python|raymu) .*)(?P<open> -->\n(?:```\n)?)(?P<content>(?:.+\n)+?)(?=```|\n)"
)


def blocks(text: str) -> dict[str, str]:
    """What stands below every command."""
    return {found["command"]: found["content"] for found in BLOCK.finditer(text)}


def run(commands: list[str]) -> dict[str, str]:
    """What commands print, one after the other."""
    printed = {}
    with tempfile.TemporaryDirectory() as place:
        for name in ("sweeps", "tests"):
            Path(place, name).symlink_to(REPOSITORY / name)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "RAYMU_CACHE": f"{place}/cache", "COLUMNS": "120"}
        for command in commands:
            done = subprocess.run(
                ["bash", "-o", "pipefail", "-c", command],
                cwd=place,
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            printed[command] = re.sub(r" +$", "", done.stdout, flags=re.MULTILINE)
    return printed


def rewritten(texts: list[str]) -> list[str]:
    """Texts with the blocks that their commands print now."""
    printed = run([command for text in texts for command in blocks(text)])
    return [BLOCK.sub(lambda found: f"{found['command']}{found['open']}{printed[found['command']]}", t) for t in texts]


def show_machine() -> None:
    """Print what the figures are made on."""
    here = devices.describe(torch.device("cpu"), "fp32")
    print(
        f"Made on {os.cpu_count()} cores of {here['processor']}, in {here['arithmetic']}, by torch {torch.__version__}."
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("what", nargs="?", help="machine, metrics or columns")
    arguments.add_argument("--print", action="store_true", help="leave the pages as they are")
    options = arguments.parse_args()
    if options.what == "machine":
        show_machine()
    elif options.what == "metrics":
        print(metrics.markdown_table())
    elif options.what == "columns":
        print(row.markdown_table())
    elif options.what:
        arguments.error(f"unknown: {options.what}")
    else:
        for page, text in zip(PAGES, rewritten([page.read_text() for page in PAGES]), strict=True):
            print(text) if options.print else page.write_text(text)


if __name__ == "__main__":
    main()
