"""Training images that a file names: those that have to be forgotten, or scores by which some are chosen.

A line names an image as `raymu evaluate --samples` does: by class and key ("tench/n01440764_190"), or of an array by
its row ("17"). A score may follow after a comma. With a header, the columns are `image` and `score`.
"""

import csv
from pathlib import Path

from raymu import cache
from raymu.errors import InputError
from raymu.values import checked, content_hash

FILE = "images.json"
IMAGE, SCORE = "image", "score"
SCORED = "samples by their scores"  # begins what `keep` says of a list with scores


def keep(file: Path) -> str:
    """Text for `Scenario.forget_samples`, such as "50 listed samples: 3f2a9c41be02" or "samples by their scores: ...".
    The images' keys are copied into the cache, those with the highest scores first.

    Raises:
        InputError: the file cannot be read, names no image or one twice, or a score is no number.
    """
    try:
        lines = [line for line in csv.reader(file.read_text(encoding="utf-8").splitlines()) if line]
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file} is no list of images: {error}") from error
    header = lines.pop(0) if lines and IMAGE in lines[0] else [IMAGE, SCORE][: len(lines[0]) if lines else 0]
    scores = dict[str, float]()
    for line in lines:
        if len(line) != len(header):
            raise InputError(f"{file}: {','.join(line)!r} should be {','.join(header)}")
        said = dict(zip(header, line, strict=True))
        image = said[IMAGE].strip()
        if image in scores:
            raise InputError(f"{file} names {image} twice")
        scores[image] = checked(f"{file}: the score of {image}", said.get(SCORE, 0), float)
    if not scores:
        raise InputError(f"{file} names no image")
    images = sorted(scores, key=lambda image: (-scores[image], image))
    digest = content_hash(images)
    cache.once(_entry(digest), lambda unfinished: cache.save_json(unfinished / FILE, images))
    return f"{SCORED if SCORE in header else f'{len(images):,} listed samples'}: {digest}"


def check(kept: str, share: float) -> None:
    """Look whether a list and a share of the samples make sense together.

    Args:
        kept: what `keep` returned, or empty: no list.
        share: of the training samples.

    Raises:
        InputError: a share without scores, scores without a share, or a share that is none.
    """
    if kept and bool(share) != kept.startswith(SCORED):
        raise InputError("forget_samples need a forget_share where they have scores, and only there")
    if not kept and not 0 < share < 1:
        raise InputError(f"the share of the samples to forget lies between 0 and 1, not {share:g}")


def images_of(kept: str) -> list[str]:
    """Keys of the images, in the order of the list that `keep` returned this text for.

    Raises:
        InputError: they are neither in the cache nor in its mirror.
    """
    entry = _entry(kept.rpartition(" ")[2])
    if not cache.find(entry):
        raise InputError(f"the {kept} are not in the cache any more: name the scenario's file again")
    found: list[str] = cache.load_json(entry / FILE)
    return found


def _entry(digest: str) -> Path:
    return cache.root() / "samples" / digest
