"""What is computed once."""

import multiprocessing
import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from raymu import cache, references, splits
from raymu.distributed.cache_server import Shelf


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
    assert sorted(os.listdir(tmp_path / "entry")) == [cache.HASHES, "whole"]


@pytest.mark.parametrize("blow", ["changed", "cut", "removed", "added", "unsaid"])
def test_what_was_damaged_is_built_anew(tmp_path: Path, blow: str) -> None:
    entry = cache.once(tmp_path / "entry", lambda entry: (entry / "whole").write_text("as it was"))
    built = (entry / cache.HASHES).stat().st_mtime_ns
    assert cache.is_whole(entry)
    damaged = shutil.copytree(entry, tmp_path / "damaged")
    if blow == "changed":
        (damaged / "whole").write_text("as it Was")
    elif blow == "cut":
        os.truncate(damaged / "whole", 3)
    elif blow == "removed":
        (damaged / "whole").unlink()
    elif blow == "added":
        (damaged / "more").touch()
    else:
        (damaged / cache.HASHES).write_text("{")
    assert not cache.is_whole(damaged)
    assert not cache.find(damaged)
    cache.once(damaged, lambda entry: (entry / "whole").write_text("new"))
    assert cache.is_whole(damaged)
    assert sorted(os.listdir(damaged)) == [cache.HASHES, "whole"]
    cache.once(entry, lambda entry: pytest.fail("it is whole"))
    assert (entry / cache.HASHES).stat().st_mtime_ns == built


def test_what_stands_in_the_place_of_another_is_built_anew(quick, quick_references, tmp_path, monkeypatch) -> None:
    shutil.copytree(cache.base(), tmp_path / "cache")
    monkeypatch.setenv("RAYMU_CACHE", str(tmp_path / "cache"))
    original, retrained = (references.entry_of(quick, which) for which in references.REFERENCES)
    original.rename(tmp_path / "aside")
    retrained.rename(original)
    (tmp_path / "aside").rename(retrained)
    assert references.missing(quick) == ["original", "retrained"]


def test_a_damaged_reference_is_trained_again(quick, quick_references, tmp_path, monkeypatch) -> None:
    shutil.copytree(cache.base(), tmp_path / "cache")
    monkeypatch.setenv("RAYMU_CACHE", str(tmp_path / "cache"))
    assert references.are_ready(quick)
    weights = references.entry_of(quick, "original") / references.WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # a single bit of a weight
    weights.write_bytes(content)
    os.utime(references.entry_of(quick, "original") / cache.HASHES)  # another process would look for itself
    assert references.missing(quick) == ["original"]
    references.train(quick, "original")
    assert references.missing(quick) == []
    trained = cache.load_tensors(weights, torch.device("cpu"))
    for name, tensor in quick_references.original.items():
        assert torch.equal(trained[name], tensor)


def test_a_shelf_that_is_asked_twice_stores_once(tmp_path: Path) -> None:
    """It was killed before it could answer."""
    shelf = Shelf(str(tmp_path))
    begun = shelf.begin("some/entry", damaged=False)
    for start, content in ((0, b"first "), (6, b"second")):
        for _ in range(2):
            shelf.write(begun, "file", start, content)
    for _ in range(2):
        shelf.end(begun, "some/entry")
    assert os.listdir(tmp_path / "some") == ["entry"]
    assert (tmp_path / "some" / "entry" / "file").read_bytes() == b"first second"


def test_the_cache_can_be_moved(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RAYMU_CACHE", str(tmp_path))
    assert tmp_path in cache.root().parents


def test_references_are_what_they_say(quick, quick_references) -> None:
    """Trained once, loaded as they were, and the retrained one never saw the forget class."""
    assert references.missing(quick) == []
    entry = references.entry_of(quick, "original")
    stamp = entry.stat().st_mtime_ns
    references.train(quick, "original")
    assert entry.stat().st_mtime_ns == stamp
    assert cache.load_json(entry / "scenario.json") == splits.prepare(quick).as_dict()
    assert quick_references.metrics["retrained"]["test_forget_acc"] == 0.0
