"""Hostile inputs: whatever files, flags and the environment say, a command works or ends in one line, and never in a
traceback.
"""

import contextlib
import copy
import json
import os
import random
import shutil
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import typer
from conftest import REPOSITORY
from test_ranking import confirmed, stored

from raymu import reference_models, row
from raymu.cli import main, program
from raymu.cli.program import console
from raymu.cli.sweep import _sweep_app
from raymu.errors import InputError
from raymu.methods.salun import SalUn
from raymu.results import files, reader, writer
from raymu.results.identity import lasting
from raymu.scenario import SCENARIOS
from raymu.tuning.sweep import Sweep
from raymu.values import content_hash

HOSTILE: list[Any] = [
    None, 5, -1, 0, 10**400, 1.5, True, "", "x", "../../x", "a\nb", "é\u202e", "9" * 400, ".inf", [], [5], {}, {"a": 1},
    [[[]]], ["x", None], {"": None}, "=1+1", "[red]x[/]", "[/x]", ":x:", "\x00",
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
    ["results", "--json"],
    ["results", "--csv"],
    ["results", "--ranking"],
    ["results", "--latex"],
    ["results", "--ranking", "--at-equal", "images"],
    ["results", "--ranking", "--at-equal", "hours"],
    ["best"],
    ["best", "--json"],
    ["best", "--rule", "pareto"],
    ["best", "--rule", "cheapest"],
    ["best", "--rule", "constrained:0.02"],
    ["status"],
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
    stored(directory, confirmed("a", 0.5))
    shutil.copytree(REPOSITORY / "tests" / "raymu-0.1", directory / "b")
    path = draw.choice(sorted(path for path in directory.rglob("*.json*") if path.is_file()))
    if draw.random() < 0.2:
        content = path.read_bytes()
        cut = draw.randrange(len(content) + 1)
        path.write_bytes(draw.choice([*RAW, content[:cut], content[:cut] + b"\xe9" + content[cut:]]))
        return
    content = {one: lines_of(one) for one in path.parent.glob("*.json*")}
    chosen = draw.randrange(len(content[path]))
    content[path][chosen] = mutated(content[path][chosen], draw)
    if path.parent.name != "a":
        path.write_text("".join(json.dumps(line) + "\n" for line in content[path]))
        return
    (identity,) = content[directory / "a" / files.SWEEP]
    with contextlib.suppress(Exception):  # so much is changed that no checksum is known
        seal = files.seal_of(identity)
        for row in content[directory / "a" / files.ROWS] if path.name == files.SWEEP else []:
            row |= {"protocol_hash": content_hash(lasting(identity)["protocol"])}
            row |= {"scenario_hash": content_hash(identity["scenario"])} if row["source"] != "confirmation" else {}
        for one, lines in content.items():
            its = b"" if one.name == files.SWEEP else seal
            one.write_bytes(b"".join(files._sealed(json.dumps(line).encode(), its) + b"\n" for line in lines))


def lines_of(path: Path) -> list[Any]:
    """JSON of a file, without checksums: one line, or in a .jsonl file several."""
    texts = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    lines = list(map(json.loads, texts))
    for line in lines:
        line.pop("checksum", None)
    return lines


def test_a_changed_storage_has_checksums_that_fit(tmp_path) -> None:
    """Or nothing behind them was tried."""
    read = 0
    for seed in range(60):
        store(tmp_path / str(seed), seed)
        with contextlib.suppress(InputError):
            read += bool(reader.load(tmp_path / str(seed) / "a"))
    assert read > 30


@pytest.mark.parametrize("seed", range(60))
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


@pytest.mark.parametrize("ends", [(0.0, 1.0, "log"), (1.0, 1.0, "linear"), (2, 1, "int"), (0.1, 1.0, "cube")])
def test_a_range_that_cannot_be(end, tmp_path, ends) -> None:
    """A report has no place for it on an axis."""
    stored(tmp_path, confirmed("a", 0.5))
    path = tmp_path / "a" / files.SWEEP
    said = json.loads(path.read_text())
    del said["checksum"]
    said["space"] = {"lr": dict(zip(("low", "high", "scale"), ends, strict=True))}
    path.write_bytes(files.as_json(said))
    for command in READERS:
        assert "sweep.json is damaged (space.lr" in end(*command, "a")


@pytest.mark.parametrize("name", [files.SWEEP, files.ROWS, files.REFERENCES, files.ENDED])
def test_a_pipe_is_no_file(end, tmp_path, name) -> None:
    """To read it would never end."""
    stored(tmp_path, confirmed("a", 0.5))
    (tmp_path / "a" / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "a" / name)
    for command in READERS:
        said = end(*command, "a")
        assert f"{name} is no file" in said or command == ["status"]


def test_a_report_replaces_no_pipe(end, tmp_path) -> None:
    """Nor a device: `--out /dev/null` as root. Of a link it is what the link leads to that is written."""
    stored(tmp_path, confirmed("a", 0.5))
    os.mkfifo(tmp_path / "pipe")
    assert "pipe is no file" in end("report", "a", "--out", "pipe")
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "link").symlink_to("page.html")
    end("report", "a", "--out", "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize("needed", row.NEEDED)
def test_rows_without_a_column(end, tmp_path, needed) -> None:
    one = confirmed("a", 0.5)
    with writer.Store(tmp_path / "s", one.identity, resume=False) as rows:
        for found in one.rows:
            rows.append({name: value for name, value in found.items() if name != needed})
    for command in READERS:
        assert f"line 1 of rows.jsonl is damaged ({needed}: Field required)" in end(*command, "s")


# Flags

VALUES = [
    "", "0", "-1", "1", "2", "nan", "inf", "-inf", "1e400", "9" * 400, "0x1", "1_0", "٣", "é\u202e", "a" * 5000, "../x",
    "/proc/x", "/etc/passwd", ".", "missing", "binary", "deep.yaml", "own.py", "[/x]", "{}", "[]", "null", ",",
    "1,2", "0,0", "3:1", "lr=1:2", "lr=", "=", "lr=a:b", "lr=nan:1", "salun", "SalUn", "digits", "tpe", "grid", "auto",
    "none", "removal", "hmaen", "s3://", "gs://", "s3://a:b@", "file:///x", "sqlite://", "--", "-", "\n", "a\tb",
    "images",
]  # fmt: skip


def options() -> dict[tuple[str, ...], list[Any]]:
    """Parameters of every command, by its words."""
    app = typer.main.get_command(program.app)
    found = {(name,): one.params for name, one in app.commands.items() if name not in ("sweep", "doctor")}
    sweep = _sweep_app([Sweep(SalUn, SCENARIOS["digits"])])
    return found | {("sweep", "salun"): typer.main.get_command(sweep).params}


def drawn(draw: random.Random, known: dict[tuple[str, ...], list[Any]]) -> list[str]:
    """A command with some of its arguments and flags, of which any may be nonsense."""
    words = draw.choice(sorted(known))
    arguments = list(words)
    for one in known[words]:
        if one.param_type_name == "argument":
            arguments += [draw.choice(VALUES)] if draw.random() < 0.7 else []
        elif draw.random() < 2 / len(known[words]):
            flag = draw.choice([*one.opts, *one.secondary_opts])
            arguments += [flag] if one.is_flag else [flag, draw.choice(VALUES)]
    return arguments


@pytest.fixture
def idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No computation begins, and some files are there."""

    def refuse(*arguments: Any, **named: Any) -> None:
        raise InputError("it would compute now")

    monkeypatch.setattr(ray, "init", refuse)
    for name in ("train", "compare", "load"):
        monkeypatch.setattr(reference_models, name, refuse)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "deep.yaml").write_text("[" * 5000)
    (tmp_path / "own.py").write_text("1 / 0")


@pytest.mark.parametrize("first", [0, *(pytest.param(first, marks=pytest.mark.long) for first in range(25, 1000, 25))])
def test_flags(end, idle, tmp_path, first) -> None:
    known = options()
    for seed in range(first, first + 25):
        arguments = drawn(random.Random(seed), known)
        began = time.monotonic()
        try:
            end(*arguments)
        except BaseException:
            print(arguments)
            raise
        assert time.monotonic() - began < 10, arguments


# Scenario files

TOML = ['""', "[]", "{}", "nan", "-inf", "9" * 400, "true", "1979-05-27", "[[1]]", '"\\u0000"', "5"]
PETS = """
architecture = "test_resnet"
forget = [1]
original = "none.pth"
[data]
format = "npz"
where = "binary"
mean = [0.5]
std = [0.5]
[recipe]
lr = 0.1
epochs = 2
batch_size = 8
"""


@pytest.mark.parametrize("first", [0, *(pytest.param(first, marks=pytest.mark.long) for first in range(25, 500, 25))])
def test_scenario_files(end, idle, tmp_path, first) -> None:
    whole = tomllib.loads(PETS)
    for seed in range(first, first + 25):
        draw = random.Random(seed)
        lines = PETS.splitlines()
        if draw.random() < 0.3:
            lines[draw.randrange(len(lines))] = draw.choice(["[", "x", "= 1", "[data]", "forget = [", "\x00", 'a = "'])
        else:
            name = draw.choice(sorted(name for name, value in whole.items() if not isinstance(value, dict)))
            value = draw.choice(TOML)
            lines = [f"{name} = {value}" if line.startswith(name) else line for line in lines]
        (tmp_path / "a.toml").write_text("\n".join(lines))
        assert end(*draw.choice([["references"], ["run", "salun"], ["sweep", "salun"]]), "--scenario", "a.toml")


# The environment

VARIABLES = (
    *("RAYMU_CACHE", "HOME", "TMPDIR", "RAY_TMPDIR", "RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"),
    *("RAY_AUTH_MODE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "COLUMNS", "TERM", "LC_ALL", "USER", "PATH"),
)
SAID = ["", "nan", "/proc/x", "/etc/passwd", 5000 * "a", "é", "missing", "0", "-1", "1e9", "/dev/null", "s3://x"]


@pytest.mark.long
@pytest.mark.parametrize("first", range(0, 50, 10))
def test_the_environment(raymu, tmp_path, first) -> None:
    """A process each, since much is read when it starts. `raymu doctor` ends with 1 where something is missing."""
    store(tmp_path / "stored", seed=1)
    sweep = ["sweep", "finetune", "--trials", "0"]  # what it says of the trials comes after all that it imports
    for seed in range(first, first + 10):
        draw = random.Random(seed)
        arguments = draw.choice([["doctor"], sweep, ["results", "stored"], ["scenarios"]])
        environment = {draw.choice(VARIABLES): draw.choice(SAID)}
        done = raymu(*arguments, **environment)
        about = arguments, environment, done.stdout, done.stderr
        assert done.returncode in (0, 1 if arguments == ["doctor"] else 2, 2), about
        assert "Traceback" not in done.stdout + done.stderr, about
        assert done.returncode != 2 or done.stderr.splitlines()[-1].startswith("error: "), about
