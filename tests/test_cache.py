"""What is computed once."""

import errno
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_store import s3

from raymu import cache, reference_models, splits
from raymu.errors import InputError
from raymu.storage import Location, locate, read_if_there, write_bytes

__all__ = ["s3"]  # a fixture


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
    context = multiprocessing.get_context("fork")  # fresh ones would import torch, for nothing
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
    original, retrained = (reference_models.entry_of(quick, which) for which in reference_models.REFERENCES)
    original.rename(tmp_path / "aside")
    retrained.rename(original)
    (tmp_path / "aside").rename(retrained)
    assert reference_models.missing(quick) == ["original", "retrained"]


def test_a_damaged_reference_is_trained_again(quick, quick_references, tmp_path, monkeypatch) -> None:
    shutil.copytree(cache.base(), tmp_path / "cache")
    monkeypatch.setenv("RAYMU_CACHE", str(tmp_path / "cache"))
    assert reference_models.are_ready(quick)
    weights = reference_models.entry_of(quick, "original") / reference_models.WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # a single bit of a weight
    weights.write_bytes(content)
    os.utime(reference_models.entry_of(quick, "original") / cache.HASHES)  # another process would look for itself
    assert reference_models.missing(quick) == ["original"]
    reference_models.train(quick, "original")
    assert reference_models.missing(quick) == []
    trained = cache.load_tensors(weights, torch.device("cpu"))
    for name, tensor in quick_references.original.items():
        assert torch.equal(trained[name], tensor)


@pytest.fixture(params=["local", "s3"])
def mirrored(request, tmp_path, monkeypatch) -> Location:
    """The mirror of a sweep, and a cache that is empty."""
    place = str(tmp_path / "storage") if request.param == "local" else request.getfixturevalue("s3").place()
    mirror = locate(place) / ".cache"
    monkeypatch.setattr(cache, "mirror", mirror)
    another_machine(tmp_path / "first", monkeypatch)
    return mirror


def another_machine(directory: Path, monkeypatch) -> Path:
    """An entry that is nowhere there."""
    monkeypatch.setattr(cache, "_mirrored", set())
    monkeypatch.setenv("RAYMU_CACHE", str(directory))
    return cache.root() / "some" / "entry"


def three_files(entry: Path) -> None:
    for name, content in {"empty": b"", "one": bytes(10), "more": os.urandom(2**20)}.items():
        (entry / name).write_bytes(content)


def test_what_one_machine_built_others_have_from_the_mirror(mirrored, tmp_path, monkeypatch) -> None:
    entry = another_machine(tmp_path / "first", monkeypatch)
    assert not cache.find(entry)
    content = {path.name: path.read_bytes() for path in cache.once(entry, three_files).iterdir()}
    there = another_machine(tmp_path / "second", monkeypatch)
    assert cache.find(there)
    assert {path.name: path.read_bytes() for path in there.iterdir()} == content
    if mirrored.local:  # it takes no room a second time
        assert (there / "more").stat().st_ino == (entry / "more").stat().st_ino


def test_what_was_there_before_the_mirror_is_mirrored(mirrored, tmp_path, monkeypatch) -> None:
    with monkeypatch.context() as before:
        before.setattr(cache, "mirror", None)
        entry = cache.once(another_machine(tmp_path / "first", monkeypatch), three_files)
    assert cache.find(entry)
    assert cache.find(another_machine(tmp_path / "second", monkeypatch))


@pytest.mark.parametrize("blow", ["changed", "gone", "half"])
def test_a_damaged_mirror_is_mended(mirrored, tmp_path, monkeypatch, blow) -> None:
    """Half an entry is what a machine leaves that is lost while it writes."""
    cache.once(another_machine(tmp_path / "first", monkeypatch), three_files)
    entry = mirrored / "some/entry"
    version = read_if_there(entry, cache.CURRENT)
    if blow == "changed":
        write_bytes(entry / version, "one", b"else")
    elif blow == "gone":
        entry.filesystem.delete_file(f"{entry.path}/{version}/one")
    else:
        entry.filesystem.delete_file(f"{entry.path}/{cache.CURRENT}")
    there = another_machine(tmp_path / "second", monkeypatch)
    assert not cache.find(there)
    cache.once(there, three_files)
    assert read_if_there(entry, cache.CURRENT) not in (None, version)
    third = another_machine(tmp_path / "third", monkeypatch)
    assert cache.find(third)
    assert (third / "more").read_bytes() == (there / "more").read_bytes()


def test_a_mirror_that_refuses_is_the_machines_failure(mirrored, tmp_path, monkeypatch) -> None:
    """The trial may well work if it is tried again; what was built stays here."""

    def refuse(*arguments) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr("raymu.storage.OUTAGE_S", 0.1)
    monkeypatch.setattr(cache, "copy_directory", refuse)
    entry = another_machine(tmp_path / "first", monkeypatch)
    with pytest.raises(OSError, match="quota"):
        cache.once(entry, three_files)
    assert cache.is_whole(entry)


def test_references_are_trained_once_for_all_clusters(quick, quick_references, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(cache, "mirror", locate(tmp_path / "storage"))
    monkeypatch.setattr(cache, "_mirrored", set())
    assert reference_models.are_ready(quick)
    splits.prepared(splits.prepare(quick))
    another_machine(tmp_path / "second", monkeypatch)
    prepared = splits.prepare(quick)
    assert reference_models.are_ready(prepared)
    assert reference_models.metrics(prepared) == quick_references.metrics


def test_tensors_are_for_whom_the_umask_says_and_a_full_disk_is_the_systems_error(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        cache.save_tensors(tmp_path / "tensors", {"one": torch.ones(1)})
    finally:
        os.umask(before)
    assert (tmp_path / "tensors").stat().st_mode & 0o777 == 0o666
    full = tmp_path / "full.npy"
    full.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        cache.save_tensors(full, {"one": torch.ones(99)})
    with pytest.raises(OSError, match="No space left on device"):
        cache.save_array(full, np.ones(10**6))


def test_a_full_disk_is_named(small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space") as full:
        cache.atomically(small_disk / "entry", lambda path: (path / "large").write_bytes(bytes(2**24)) and None)
    assert str(small_disk) in str(full.value.filename)


@pytest.mark.parametrize("given", ["", "~nobody-of-this-name/cache"])
def test_a_cache_that_has_no_home_is_a_line(given: str, monkeypatch) -> None:
    def unknown(path: str) -> str:
        return path

    monkeypatch.setenv("RAYMU_CACHE", given)
    monkeypatch.setattr(os.path, "expanduser", unknown)  # as of a user without an entry and without HOME
    with pytest.raises(InputError, match="RAYMU_CACHE names the cache" if not given else "no such home directory"):
        cache.base()


def test_the_cache_can_be_moved(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RAYMU_CACHE", str(tmp_path))
    assert tmp_path in cache.root().parents


def test_references_are_what_they_say(quick, quick_references) -> None:
    """Trained once, loaded as they were, and the retrained one never saw the forget class."""
    assert reference_models.missing(quick) == []
    entry = reference_models.entry_of(quick, "original")
    stamp = entry.stat().st_mtime_ns
    reference_models.train(quick, "original")
    assert entry.stat().st_mtime_ns == stamp
    assert cache.load_json(entry / "scenario.json") == splits.prepare(quick).as_dict()
    assert quick_references.metrics["retrained"]["test_forget_acc"] == 0.0
