"""Held-out forget images and what a model still knows of each, as a table and as a picture."""

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from raymu.errors import InputError, Undefined
from raymu.evaluation import attack
from raymu.evaluation.views import OfModel, OfSplit
from raymu.splits import Data, Split
from raymu.values import as_cell

COLUMNS = ("split", "image", "label", "model", "probe", "ncc", "attacker")
SHOWN = 48  # images of a contact sheet
IN_A_ROW = 8
SIDE, GAP, LINE, FONT = 120, 8, 14, 11  # pixels
LETTERS = 21  # of a caption's line
OF_A_NORMALISATION = 256  # images


def samples(views: Sequence[OfModel]) -> list[dict[str, Any]]:
    """Rows on the held-out forget images, one each: validation's, then test's.

    Args:
        views: what `look` returns, of all images by this process alone.

    Returns:
        `split`; `image`, its key (see `Images.key`); `label`, its true class; the classes that the `model`, the `probe`
        and the nearest class centre (`ncc`) name; `attacker`, the log-odds by the attacker of `attack_auc`, which are
        higher where an image looks more like the forget set; None: not defined. Classes have the dataset's numbers.
    """
    found = []
    for view in views:
        if not isinstance(view, OfSplit):
            continue
        said, images = view.forget, _forget_of(view.data, view.split)
        named = (view.data.numbers_of(some) for some in (said.labels, said.answers, said.probe, said.ncc))
        keys = [images.images.key(position) for position in images.index.tolist()]
        for key, (label, model, probe, ncc), odds in zip(keys, zip(*named, strict=True), _odds(view), strict=True):
            values = (view.split, key, label, model, probe, ncc, odds)
            found.append(dict(zip(COLUMNS, values, strict=True)))
    return found


def as_seen(data: Data) -> dict[str, Any]:
    """Held-out images after normalisation.

    Returns:
        `png`, two retain and two forget images of test, as base64: values from -2 to 2, black to white in each channel;
        `mean` and `std` of test images by channel, which are near 0 and 1 where the normalisation is that of training.
    """
    retain, forget = data.test
    four = torch.cat([part.subset(torch.arange(min(2, len(part)))).read() for part in (retain, forget)])
    sheet = Image.new("RGB", (len(four) * (SIDE + GAP) - GAP, SIDE), "white")
    for place, one in enumerate(four):
        pixels = ((one + 2) * (255 / 4)).round().clamp(0, 255).to(torch.uint8)
        sheet.paste(_picture(pixels.cpu()), (place * (SIDE + GAP), 0))
    file = io.BytesIO()
    sheet.save(file, "PNG")
    some = retain.subset(torch.arange(min(OF_A_NORMALISATION, len(retain)))).read().transpose(0, 1).flatten(1)
    return {
        "png": base64.b64encode(file.getvalue()).decode(),
        "mean": some.mean(1).tolist(),
        "std": some.std(1).tolist(),
    }


def check_room(path: Path) -> None:
    """Look whether `write` can write there.

    Raises:
        InputError: it cannot, or a table or a picture is there that is none of its.
    """
    sheet = _sheet(path)
    if path.suffix != ".csv":
        raise InputError(f"--samples takes a file NAME.csv, beside which NAME.png is written, not {path}")
    others = path if path.exists() and not _is_table(path) else sheet if sheet.exists() and not path.exists() else None
    if others is not None:
        raise InputError(f"{others} is there already, and not by --samples; choose another name than {path}")
    for one in (path, sheet):
        is_new = not one.exists()
        try:
            with one.open("a"):
                pass
            if is_new:
                one.unlink()
        except OSError as error:
            raise InputError(f"cannot write to {one}: {error.strerror}") from error


def _is_table(path: Path) -> bool:
    """Whether a file is one that `write` has written."""
    try:
        with path.open(errors="replace") as file:
            return file.readline().startswith(",".join(COLUMNS))
    except OSError:
        return True  # whether it can be written is looked at after this


def write(found: Sequence[Mapping[str, Any]], data: Data, path: Path) -> Path | None:
    """Write what `samples` returns as CSV, and beside it, as PNG, a contact sheet of the images that the probe still
    names; return its path. None: there is no such image, and no sheet.

    Raises:
        OSError: a file cannot be written.
    """
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows({name: as_cell(value) for name, value in row.items()} for row in found)
    sheet = _sheet(path)
    sheet.unlink(missing_ok=True)
    known = [place for place, row in enumerate(found) if row["probe"] == row["label"]]
    if not known:
        return None
    known.sort(key=lambda place: -(found[place]["attacker"] or 0.0))
    chosen = known[:SHOWN]
    heading = f"{len(chosen)} of {len(known)} forget images that the probe names, of {len(found)} held out"
    captions = [_caption(found[place]) for place in chosen]
    _draw(heading, _pictures(data, chosen), captions).save(sheet)
    return sheet


def _sheet(path: Path) -> Path:
    return path.with_suffix(".png")


def _forget_of(data: Data, split: str) -> Split:
    forget: Split = getattr(data, split).forget
    return forget


def _odds(view: OfSplit) -> list[float | None]:
    """Log-odds of each forget image's class by the reader with the larger area, as `attack_auc` takes it."""
    readers = range(view.forget.odds.shape[1])
    try:
        areas = [attack.area(view.retain.odds[:, [one]], view.forget.odds[:, [one]], view.belongs) for one in readers]
    except Undefined:
        return [None] * len(view.forget.labels)
    of_reader = view.forget.odds[:, areas.index(max(areas))]
    odds: list[float | None] = of_reader.gather(1, view.belongs.unsqueeze(1))[:, 0].tolist()
    return odds


def _caption(row: Mapping[str, Any]) -> tuple[str, str]:
    key = str(row["image"]).encode("unicode_escape").decode()  # the font has no other letters
    shown = key if len(key) <= LETTERS else f"..{key[2 - LETTERS :]}"
    return shown, f"is {row['label']}, model says {row['model']}"


def _pictures(data: Data, chosen: Sequence[int]) -> list[Image.Image]:
    """Forget images by their place among validation's and then test's, as the model sees them."""
    of_val = _forget_of(data, "val")
    pictures = []
    for place in chosen:
        split, row = (of_val, place) if place < len(of_val) else (_forget_of(data, "test"), place - len(of_val))
        images = split.images
        seen = split.subset(torch.tensor([row], device=split.index.device)).read()[0] * images.std + images.mean
        pictures.append(_picture((seen * 255).round().clamp(0, 255).to(torch.uint8).cpu()))
    return pictures


def _picture(pixels: Tensor) -> Image.Image:
    """Picture of pixels (C, H, W); of more than three channels the first one alone."""
    channels = pixels if len(pixels) == 3 else pixels[:1]
    array = channels.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array if len(channels) == 3 else array[:, :, 0])
    scale = SIDE / max(picture.size)
    width, height = (max(1, round(scale * one)) for one in picture.size)
    return picture.resize((width, height), Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def _draw(heading: str, pictures: Sequence[Image.Image], captions: Sequence[tuple[str, str]]) -> Image.Image:
    rows = -(-len(pictures) // IN_A_ROW)
    columns, cell = min(IN_A_ROW, len(pictures)), (SIDE + GAP, SIDE + 2 * LINE + GAP)
    width = max(columns * cell[0] + GAP, 4 * cell[0])  # wide enough for the heading
    sheet = Image.new("RGB", (width, rows * cell[1] + 2 * GAP + LINE), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT)
    pen.text((GAP, GAP / 2), heading, "black", font)
    for place, (picture, lines) in enumerate(zip(pictures, captions, strict=True)):
        left = GAP + place % IN_A_ROW * cell[0]
        top = 2 * GAP + LINE + place // IN_A_ROW * cell[1]
        sheet.paste(picture, (left, top))
        for number, line in enumerate(lines):
            pen.text((left, top + SIDE + number * LINE), line, "black", font)
    return sheet
