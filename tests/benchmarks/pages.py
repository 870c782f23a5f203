"""Figures and tables of README and docs, made anew: a block that follows a comment with a command is what the command
prints. And the notebook with its outputs.

    python tests/benchmarks/pages.py           # runs commands and notebook, and writes the pages
    python tests/benchmarks/pages.py --print   # shows them instead

The commands run one after the other in an empty directory, with an empty cache. `tests/test_pages.py` runs them, too,
and compares; `tests/test_docs.py` runs the notebook. Three of the blocks are printed by this script: `machine`,
`metrics` and `columns`. With `notebook` it writes the notebook alone.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import torch
from nbclient import NotebookClient

from raymu import devices, row
from raymu.evaluation import metrics

REPOSITORY = Path(__file__).parent.parent.parent
PAGES = [REPOSITORY / name for name in ("README.md", "docs/tutorial.md", "docs/methods.md", "docs/metrics.md")]
NOTEBOOK = REPOSITORY / "docs" / "python.ipynb"
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


def notebook() -> Any:
    """The notebook as it is stored."""
    return nbformat.read(NOTEBOOK, as_version=4)


def executed(place: Path) -> Any:
    """The notebook with its outputs, after it ran in a directory."""
    content = notebook()
    before = content.metadata.copy()  # the client adds the version of Python
    resources = {"metadata": {"path": str(place)}}
    NotebookClient(content, timeout=600, record_timing=False, coalesce_streams=True, resources=resources).execute()
    content.metadata = before
    return content


def write_notebook() -> None:
    """Run the notebook, and write it with its outputs; figures as PNG, which every viewer shows."""
    os.environ["PLOTLY_RENDERER"] = "png"
    with tempfile.TemporaryDirectory() as place:
        os.environ["RAYMU_CACHE"] = f"{place}/cache"
        nbformat.write(executed(Path(place)), NOTEBOOK)


def show_machine() -> None:
    """Print what the figures are made on."""
    here = devices.describe(torch.device("cpu"), "fp32")
    print(
        f"Made on {os.cpu_count()} cores of {here['processor']}, in {here['arithmetic']}, by torch {torch.__version__}."
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("what", nargs="?", help="machine, metrics, columns or notebook")
    arguments.add_argument("--print", action="store_true", help="leave the pages as they are")
    options = arguments.parse_args()
    if options.what == "machine":
        show_machine()
    elif options.what == "metrics":
        print(metrics.markdown_table())
    elif options.what == "columns":
        print(row.markdown_table())
    elif options.what == "notebook":
        write_notebook()
    elif options.what:
        arguments.error(f"unknown: {options.what}")
    else:
        for page, text in zip(PAGES, rewritten([page.read_text() for page in PAGES]), strict=True):
            print(text) if options.print else page.write_text(text)
        if not options.print:
            write_notebook()


if __name__ == "__main__":
    main()
