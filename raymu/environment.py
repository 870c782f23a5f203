"""On what a sweep runs: versions, git state and machine, so that a reader of its results can tell."""

import datetime
import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("raymu", "ray", "torch", "torchvision", "timm", "optuna", "scikit-learn", "numpy", "scipy", "pillow")
GIT_TIMEOUT_S = 10


def describe() -> dict[str, Any]:
    """In JSON's types: "versions" by package, "git" (commit and whether it is "dirty", of the checkout that raymu is
    imported from, or the commit that pip installed; None if neither is known), "machine", and when it "started".
    """
    versions = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}
    return {
        "versions": versions,
        "git": _git(),
        "machine": f"{platform.node()}, {platform.system()} {platform.machine()}",
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _git() -> dict[str, Any] | None:
    package = Path(__file__).parent

    def ask(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=True)
        return answer.stdout.strip()

    try:
        if not ask("ls-files", "--", __file__):
            return _installed()  # the repository of something else, with a virtual environment inside
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return _installed()


def _installed() -> dict[str, Any] | None:
    """What pip says of a package that it installed from a repository (PEP 610)."""
    said = json.loads(importlib.metadata.distribution("raymu").read_text("direct_url.json") or "{}")
    commit = said.get("vcs_info", {}).get("commit_id")
    return {"commit": commit, "dirty": False} if commit else None
