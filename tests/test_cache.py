"""What is computed once."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from raymu import cache, references


def _slow(log: str):
    def build(entry: Path) -> None:
        with open(log, "a") as file:
            file.write("built\n")
        (entry / "part").write_text("first")
        time.sleep(0.5)
        (entry / "whole").write_text("done")

    return build


def _build(entry: str, log: str) -> None:
    cache.once(Path(entry), _slow(log))
    assert (Path(entry) / "whole").read_text() == "done"


def test_two_processes_build_once_and_see_it_whole(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    arguments = (str(tmp_path / "entry"), str(tmp_path / "log"))
    processes = [context.Process(target=_build, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert (tmp_path / "log").read_text() == "built\n"


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(entry: Path) -> None:
        (entry / "half").write_text("")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        cache.once(tmp_path / "entry", fail)
    assert not (tmp_path / "entry").exists()
    cache.once(tmp_path / "entry", lambda entry: (entry / "whole").touch())
    assert os.listdir(tmp_path / "entry") == ["whole"]


def test_the_cache_can_be_moved(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RAYMU_CACHE", str(tmp_path))
    assert tmp_path in cache.root().parents


def test_references_are_what_they_say(quick, quick_references) -> None:
    """Trained once, loaded as they were, and the retrained one never saw the forget class."""
    assert references.missing(quick) == []
    directory = references.directory(quick)
    stamp = (directory / "original").stat().st_mtime_ns
    references.train(quick, "original")
    assert (directory / "original").stat().st_mtime_ns == stamp
    assert cache.load_json(directory / "original" / "scenario.json") == quick.as_dict()
    assert quick_references.metrics["retrained"]["test_forget_acc"] == 0.0
