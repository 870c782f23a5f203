"""Rules of the architecture."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY

SOURCES = sorted((REPOSITORY / "raymu").rglob("*.py"))


FLOORS = (  # a folder or file of raymu/ imports itself and what stands on the lines above its own
    "errors modules shapes heartbeat",
    "values",
    "row storage devices environment",
    "cache source plugins memory",
    "workers",
    "architecture data",
    "scenario objective",
    "run splits",
    "method checkpoints",
    "methods models",
    "evaluation engines results scenarios",
    "training drafts",
    "reference_models protocol model_card",
    "trial fixed_points",
    "export distributed",
    "tuning unlearned",
    "study",
    "cli",
    "__init__ __main__",  # the names that a script or a shell begins with
)


def room_of(path: Path) -> str:
    return path.relative_to(REPOSITORY / "raymu").with_suffix("").parts[0]


def imports_of(path: Path) -> Iterator[str]:
    """Folders and files of raymu/ that a file imports anywhere, also inside a function and for its types alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "raymu":
            yield from (alias.name for alias in node.names if alias.name not in ("__version__",))
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name.split(".")[1] for name in names if name.startswith("raymu."))


def test_one_floor_imports_floors_below_it_alone() -> None:
    floor = {room: number for number, line in enumerate(FLOORS) for room in line.split()}
    assert set(floor) == {room_of(path) for path in SOURCES}
    upwards = [
        f"{path.relative_to(REPOSITORY)} imports {other}"
        for path in SOURCES
        for other in imports_of(path)
        if other != room_of(path) and floor[other] >= floor[room_of(path)]
    ]
    assert upwards == []


def test_no_file_is_longer_than_can_be_read_at_once() -> None:
    assert [path.name for path in SOURCES if len(path.read_text().splitlines()) > 400] == []


def test_results_know_nothing_of_training_data_or_models() -> None:
    found = {other for path in SOURCES if room_of(path) == "results" for other in imports_of(path)}
    assert found == {"errors", "objective", "results", "row", "shapes", "storage", "values"}


def offenders(pattern: str, sources: list[Path]) -> list[str]:
    return [str(path.relative_to(REPOSITORY)) for path in sources if re.search(pattern, path.read_text(), re.MULTILINE)]


def test_methods_leave_steps_and_machines_to_the_engine() -> None:
    methods = sorted((REPOSITORY / "raymu" / "methods").glob("*.py"))
    assert not offenders(r"\.backward\(|\.step\(|\.cuda\(|\bray\b|deepspeed|torch\.distributed", methods)


def test_tuning_and_distributed_alone_import_ray() -> None:
    found = offenders(r"^\s*(import ray\b|from ray\b)", SOURCES)
    assert {Path(one).parts[1] for one in found} == {"distributed", "tuning"}


def test_one_file_imports_deepspeed() -> None:
    assert offenders(r"^\s*(import deepspeed|from deepspeed)", SOURCES) == ["raymu/engines/deepspeed.py"]


def test_nothing_from_the_disk_is_unpickled() -> None:
    assert not offenders(
        r"\bpickle\.|torch\.load\((?!.*weights_only=True)|allow_pickle=True|joblib|Tuner\.restore", SOURCES
    )
    assert offenders(r"np\.load\(", SOURCES) == [
        "raymu/data/arrays.py",
        "raymu/data/index.py",
        "raymu/data/npz.py",
    ]  # its default is allow_pickle=False


def test_selection_never_sees_test() -> None:
    assert not offenders(r"test_|\"test\"", [REPOSITORY / "raymu" / "results" / "selection.py"])


@pytest.mark.parametrize("script", sorted((REPOSITORY / "sweeps").glob("*.py")), ids=lambda path: path.name)
def test_a_sweep_script_needs_nothing_beside_it(script: Path) -> None:
    imports = re.findall(r"^(?:import|from) (\S+)", script.read_text(), re.MULTILINE)
    assert imports
    assert all(name.split(".")[0] == "raymu" for name in imports)


def test_the_readme_begins_with_the_two_commands() -> None:
    first_screen = (REPOSITORY / "README.md").read_text().splitlines()[:24]
    commands = re.findall(r"^```sh\n(.*?)\n```", "\n".join(first_screen), re.MULTILINE | re.DOTALL)
    assert len(commands) == 2
    assert commands[0].endswith("python sweeps/salun.py")
    assert commands[1].endswith("pytest")
    assert re.findall(r"^python3 -m venv .*pytest$", (REPOSITORY / "README.md").read_text(), re.MULTILINE) == [
        commands[1]
    ]  # the line that .ci/run takes
