"""Hostile inputs: whatever files, flags and the environment say, a command works or ends in one line, and never in a
traceback.
"""

import copy
import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from test_ranking import confirmed

from raymu import row
from raymu.cli import main
from raymu.cli.program import console
from raymu.results import files, writer

HOSTILE: list[Any] = [
    None, 5, -1, 0, 10**400, 1.5, True, "", "x", "../../x", "a\nb", "é\u202e", "9" * 400, ".inf", [], [5], {}, {"a": 1},
    [[[]]], ["x", None], {"": None}, "=1+1", "[red]x[/]", "\x00",
]  # fmt: skip
RAW = [
    b"",
    b"\x00",
    b"5\n",
    b"null\n",
    b"[]\n",
    b"{}\n",
    b"{",
    b"\xff\xfe",
    b"caf\xe9\n",
    b'"' + 5000 * b"9" + b'"\n',
    b"[" * 5000,
]
READERS = (
    ["results"],
    ["results", "--ranking"],
    ["best"],
    ["best", "--json"],
    ["report"],
)


@pytest.fixture
def end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command of `raymu`; it has to work, or to end in one line with code 2."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console, "_width", 100)

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["raymu", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr().err
        assert ended.value.code in (None, 0, 2), said
        assert "Traceback" not in said
        if ended.value.code == 2 and not said.startswith(("Usage:", " \nUsage:", "\n")):
            assert said.splitlines()[-1].startswith("error: ") or "─" in said, said
        return said

    return run


def places(content: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values in JSON."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [at, *(place for key, value in inner for place in places(value, (*at, key)))]


def mutated(content: Any, draw: random.Random) -> Any:
    """The same JSON with another value at a place, without it, or with one more."""
    changed = copy.deepcopy(content)
    *path, last = draw.choice(places(content)[1:])
    inner = changed
    for key in path:
        inner = inner[key]
    if draw.random() < 0.2:
        del inner[last]
    else:
        inner[last] = copy.deepcopy(draw.choice(HOSTILE))
    return changed


def store(directory: Path, seed: int) -> None:
    """A storage with a sweep of raymu 0.1, which had no checksums, and one of today, of which one file says something
    else; where checksums are, they fit.
    """
    draw = random.Random(seed)
    one = confirmed("a", 0.5)
    with writer.Store(directory / "a", one.identity, resume=False) as rows:
        for row in one.rows:
            rows.append(row)
        rows.end(len(one.rows))
    shutil.copytree(REPOSITORY / "tests" / "raymu-0.1", directory / "b")
    path = draw.choice(sorted(path for path in directory.rglob("*.json*") if path.is_file()))
    if draw.random() < 0.2:
        content = path.read_bytes()
        cut = draw.randrange(len(content) + 1)
        path.write_bytes(draw.choice([*RAW, content[:cut], content[:cut] + b"\xe9" + content[cut:]]))
        return
    seal = files.seal_of(json.loads((directory / "a" / files.SWEEP).read_bytes())) if path.parent.name == "a" else None
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    chosen = draw.randrange(len(lines))
    said = json.loads(lines[chosen])
    said.pop("checksum", None)
    said = mutated(said, draw)
    if seal is None:
        lines[chosen] = json.dumps(said)
    else:
        seal = files.seal_of(said) if path.name == files.SWEEP else seal
        lines[chosen] = files._sealed(json.dumps(said).encode(), b"" if path.name == files.SWEEP else seal).decode()
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("seed", range(40))
def test_storages(end, tmp_path, seed) -> None:
    store(tmp_path / "s", seed)
    end(*READERS[seed % len(READERS)], "s")


@pytest.mark.long
@pytest.mark.parametrize("first", range(0, 1000, 50))
def test_many_storages(end, tmp_path, first) -> None:
    for seed in range(first, first + 50):
        store(tmp_path / str(seed), seed)
        for command in READERS:
            end(*command, str(seed))


@pytest.mark.parametrize("needed", row.NEEDED)
def test_rows_without_a_column(end, tmp_path, needed) -> None:
    one = confirmed("a", 0.5)
    with writer.Store(tmp_path / "s", one.identity, resume=False) as rows:
        for found in one.rows:
            rows.append({name: value for name, value in found.items() if name != needed})
    for command in READERS:
        assert f"line 1 of rows.jsonl is damaged ({needed}: Field required)" in end(*command, "s")
