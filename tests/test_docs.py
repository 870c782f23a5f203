"""The notebook of docs, run as Jupyter runs it; and every command of README and docs, carried out up to where it would
take minutes, a cluster or a cloud.
"""

import ast
import functools
import itertools
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import click
import pytest
import timm
import torch
import typer
from conftest import REPOSITORY
from PIL import Image
from safetensors.torch import load_file, save_file

import raymu
from raymu import storage
from raymu.cli import app, main
from raymu.methods.salun import SalUn
from raymu.results import reader
from raymu.tuning.progress import NotebookConsole, SweepProgress

sys.path.insert(0, str(REPOSITORY / "tests" / "benchmarks"))

import pages

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]  # the notebook has two sweeps

STORED = pages.notebook()
FILES = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "cluster/README.md")]
FILES += sorted((REPOSITORY / "docs").glob("*.md"))
TEXTS = {str(path.relative_to(REPOSITORY)): path.read_text() for path in FILES}
TEXTS["docs/python.ipynb"] = "\n\n".join(cell.source for cell in STORED.cells if cell.cell_type == "markdown")
EXTRAS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]

LEFT_OUT = (  # what takes minutes: a command is carried out up to there
    "raymu.cli.sweep.sweep_and_show",
    "raymu.cli.sweep.sweep_and_rank",
    "raymu.cli.run._unlearn",
    "raymu.study.references",
)
PARSED = (  # beginnings of commands that are read by their command line, and no more
    "raymu doctor",  # test_cli.py runs it
    "raymu evaluate",  # test_unlearned.py
    "raymu best swept",  # test_extending.py runs all of docs/extending.md, in minutes
    "raymu run own.py",
    "raymu export swept",
    "raymu report swept",
    "raymu report before after",  # test_report.py
)
# Programs that are not ours.
OTHERS = {"aws", "az", "chmod", "gcloud", "kubectl", "mypy", "ruff", "scancel", "source", "tail"}
WRONG = (click.UsageError, typer.BadParameter.__base__)  # typer has a copy of click
CUT_SHORT = ("MissingParameter", "BadOptionUsage", "NoArgsIsHelpError")


# The notebook


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, list[Any]], Path]:
    """What the notebook shows, and the directory in which it ran."""
    here = tmp_path_factory.mktemp("notebook")
    return outputs_of(pages.executed(here)), here


def outputs_of(notebook: Any) -> dict[str, list[Any]]:
    """Outputs by the last line of their cell."""
    return {cell.source.splitlines()[-1]: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def kind(output: Any) -> str:
    """What a reader sees of an output."""
    if "data" not in output:
        return output.name
    seen = {"application/vnd.plotly.v1+json": "picture", "image/png": "picture", "text/html": "table or link"}
    return next((what for content, what in seen.items() if content in output.data), "text")


def test_the_notebook_shows_what_is_stored_in_it(ran) -> None:
    here = {cell: [kind(one) for one in outputs] for cell, outputs in ran[0].items()}
    assert here == {cell: [kind(one) for one in outputs] for cell, outputs in outputs_of(STORED).items()}
    assert here['figures["tradeoff"]'] == ["picture"]
    assert "stderr" not in {one for kinds in here.values() for one in kinds}


def test_a_sweep_in_a_notebook_has_one_output_that_changes(ran) -> None:
    (outputs,) = (outputs for cell, outputs in ran[0].items() if "raymu.tune" in cell)
    changing = [one.data["text/plain"] for one in outputs if "data" in one]
    assert [re.sub(r"\d\.\d{3}|\d+:\d\d", "#", text) for text in changing] == ["trials: 3/3, best #, #"] * 2
    lines = "".join(one.text for one in outputs if "data" not in one).splitlines()
    shown = {line.split()[0] for line in lines}
    for sweep in ("finetune", "salun"):  # whichever of its trials ends first has a line
        assert shown & {f"{sweep}-{number:04d}" for number in range(3)}


def test_a_thousand_trials_are_few_lines_in_a_notebook(monkeypatch, capsys) -> None:
    shown: list[str] = []

    class Handle:
        def update(self, content: dict[str, str], raw: bool) -> None:
            shown[-1] = content["text/plain"]

    def display(content: dict[str, str], raw: bool, display_id: bool) -> Handle:
        shown.append(content["text/plain"])
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    with SweepProgress(NotebookConsole(), "trials", 1000, []) as progress:
        for trial in range(1000):
            row = {"trial_id": f"salun-{trial}", "status": "completed", "config": {}, "error": None}
            progress.started(row["trial_id"])
            assert shown[0].startswith(f"trials: {trial}/1000, 1 running")
            progress.ended(row["trial_id"], row | {"score": min(trial, 9) / 10})
    assert shown == ["trials: 1000/1000, best 0.900, 0:00"]
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [f"salun-{n}" for n in range(10)]


def test_the_notebook_leaves_rows_and_models(ran) -> None:
    shown, here = ran
    rows = raymu.load(here / "study")
    assert sorted(zip(rows["sweep"], rows["trial"], strict=True)) == [
        (sweep, trial) for sweep in ("finetune", "salun") for trial in range(3)
    ]
    row = raymu.best(here / "study", method="salun")[0]
    ((last,),) = (outputs for cell, outputs in shown.items() if cell.startswith('measured["'))
    columns = "test_probe_forget_acc", "test_probe_forget_acc_gap"
    assert ast.literal_eval(last.data["text/plain"]) == tuple(row[column] for column in columns)
    assert "plotly" in (here / "report.html").read_text()
    kept = load_file(here / "unlearned" / "model.safetensors")
    again, model = raymu.Trial(SalUn(lr=0.02, epochs=2), raymu.SCENARIOS["digits"], seed=1).run()
    assert again["status"] == "completed"
    assert all(torch.equal(weight.cpu(), kept[name]) for name, weight in model.state_dict().items())


# The commands


class Command(NamedTuple):
    """Words of a command, and the file that takes what it prints."""

    words: list[str]
    into: str | None

    def __str__(self) -> str:
        return shlex.join(self.words)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(block: str) -> Iterator[Command]:
    """Commands of a shell block."""
    lexer = shlex.shlex(re.sub(r"(^|\s)#.*|\\\n", " ", block, flags=re.MULTILINE), True, True, "&|;<>\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    words: list[str] = []
    into = None
    tokens = iter([*lexer, "\n"])
    for token in tokens:
        if token == ">":
            into = next(tokens)
        elif not set(token) <= set("&|;\n"):
            words.append(token)
        elif words:
            yield Command(list(itertools.dropwhile(re.compile(r"[A-Z_]+=").match, words)), into)
            words, into = [], None


def mentions(text: str) -> Iterator[str]:
    """What stands between backquotes within sentences."""
    prose = re.sub(r"<!--.*?-->", "", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), flags=re.S)
    yield from (" ".join(one.split()) for one in re.findall(r"`([^`]+)`", prose))


def parse(command: Any, words: list[str], name: str) -> Any:
    """Read words by a command line that does not run."""
    context = command.make_context(name, list(words))
    if not hasattr(command, "resolve_command"):
        return context
    name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
    return parse(command, rest, name)


@functools.cache
def known_flags() -> set[str]:
    """All flags of raymu; those of a sweep are there once its method is known."""
    raymu = command_line("raymu")
    return flags(raymu) | flags(parse(raymu, ["sweep", "salun"], "raymu").command)


def flags(command: Any) -> set[str]:
    """Flags of a command and of those below it."""
    context = typer.Context(command)
    below = [command.get_command(context, name) for name in getattr(command, "list_commands", lambda _: [])(context)]
    return {flag for one in command.params for flag in (*one.opts, *one.secondary_opts)}.union(*map(flags, below))


def extras(words: list[str]) -> set[str]:
    """Extras of raymu that words of a pip command name."""
    return {extra for word in words for extra in re.findall(r"^'?(?:raymu|\.)\[(.*)\]'?$", word)}


def command_line(program: str) -> Any:
    """The command line of raymu or of ray."""
    if program == "raymu":
        return typer.main.get_command(app)
    from ray.scripts.scripts import cli  # it takes a second, also where these tests are only collected

    return cli


@pytest.fixture(scope="module")
def there(ran) -> Path:
    """A directory with what the pages speak of; the notebook's sweeps are those of their commands."""
    _, here = ran
    shutil.copytree(here / "study", here / "raymu-results" / "all", ignore=shutil.ignore_patterns(".cache"))
    for name in ("salun", "pets"):
        shutil.copytree(here / "study" / "salun", here / "raymu-results" / name)
    for number, name in enumerate(("beagle", "cat", "pug")):
        for part, image in itertools.product(("train", "val"), range(10)):
            (here / "images" / part / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (80 * number, 20 * image, 0)).save(
                here / "images" / part / name / f"{image}.png"
            )
    save_file(timm.create_model("resnet18", num_classes=3).state_dict(), here / "model.safetensors")
    for name in ("cluster", "sweeps", "tests"):
        (here / name).symlink_to(REPOSITORY / name)
    (here / "own.py").write_text("\n\n".join(blocks(TEXTS["docs/extending.md"], "python")))
    return here


@pytest.fixture
def carry_out(there, monkeypatch, capsys) -> Callable[[Command], None]:
    """Function that carries a command out, up to what is left out."""

    def stop(*given: Any, **more: Any) -> NoReturn:
        sys.exit(0)

    for name in LEFT_OUT:
        monkeypatch.setattr(name, stop)
    locate = storage.locate
    region = "region=us-east-1"  # which pyarrow would ask the bucket for
    monkeypatch.setattr(storage, "locate", lambda uri: locate(re.sub(r"^(s3://[^?]*)$", rf"\1?{region}", str(uri))))
    monkeypatch.chdir(there)

    def end(program: Callable[[], Any], words: list[str]) -> None:
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as end:
            program()
        assert not end.value.code, capsys.readouterr().err

    def script(words: list[str]) -> None:
        if words[0] != "-m":
            end(lambda: runpy.run_path(words[0], run_name="__main__"), words)

    def carry_out(command: Command) -> None:
        program, *words = command.words
        program = Path(program).name
        if str(command).startswith(PARSED):
            parse(command_line(program), words, program)
        elif program == "raymu":
            end(main, command.words)
        elif program in ("python", "python3"):
            script(words)
        elif program == "ray":
            if rest := parse(command_line(program), words, program).params.get("script_args"):
                script([words[2], *rest])
        elif program == "sbatch":
            assert Path(words[0]).exists()
            script(words[1:])
        elif program == "cp":
            subprocess.run(command.words, check=True)
        elif program == "pip":
            assert extras(words) <= set(EXTRAS)
        elif program == "pytest":
            assert all(Path(word).exists() for word in words if "/" in word)
        else:
            assert program in OTHERS
        printed = capsys.readouterr().out
        if command.into:
            Path(command.into).write_text(printed)

    return carry_out


@pytest.mark.parametrize("page", [page for page, text in TEXTS.items() if blocks(text, "sh")])
def test_every_command_of_a_page_is_carried_out(page: str, carry_out) -> None:
    for block in blocks(TEXTS[page], "sh"):
        for command in commands(block):
            carry_out(command)


@pytest.mark.parametrize("page", TEXTS)
def test_commands_and_flags_in_sentences_are_known(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    known = known_flags()
    for mention in mentions(TEXTS[page]):
        program, *words = mention.split()
        if words and program in ("raymu", "ray"):
            try:
                parse(command_line(program), shlex.split(mention)[1:], program)
            except typer.Exit:
                pass
            except WRONG as error:
                if type(error).__name__ not in CUT_SHORT:  # as in "what `raymu export` writes"
                    raise
        elif program in ("python", "python3", "pytest"):
            assert all(Path(word).exists() for word in words if "/" in word), mention
        elif program == "pip":
            assert extras(words) <= set(EXTRAS), mention
        elif mention.startswith("--"):
            assert {word.split("=")[0] for word in mention.split() if word.startswith("--")} <= known, mention


def test_the_python_of_the_readme_works(there, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = reader.load(there / "study" / "salun")
    monkeypatch.setattr("raymu.study.tune", lambda sweep, name: found)
    (block,) = blocks(TEXTS["README.md"], "python")
    said: dict[str, Any] = {}
    exec(block, said)
    assert said["again"]["score"] == said["row"]["score"]


@pytest.mark.parametrize(
    "command",
    [
        "raymu swep salun",
        "raymu results --jsn",
        "raymu best swept --yml",
        "raymu sweep salun --scenario digit",
        "raymu run salun --out x --config none.yaml",
        "python sweeps/salum.py",
        "python sweeps/salun.py --trails 3",
        "python sweeps/salun.py --trials three",
        "ray upp cluster.yaml",
        "ray submit cluster.yaml sweeps/salun.py --concurent 4",
        "cp cluster/aws.yml cluster.yaml",
        "pip install '.[tests]'",
        "pytest tests/test_doc.py",
        "rayum results",
    ],
)
def test_what_is_wrong_in_a_command_is_found(command: str, carry_out) -> None:
    (read,) = commands(command)
    with pytest.raises((AssertionError, OSError, subprocess.CalledProcessError, *WRONG)):
        carry_out(read)
