"""Rows that a sweep's storage has lost, kept on this machine until `--resume` puts them back."""

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raymu.errors import InputError
from raymu.results.files import ROWS, SWEEP, all_rows, as_json, identity_and_parts, json_line, seal_of
from raymu.results.identity import differences, lasting
from raymu.row import Row
from raymu.storage import Location, locate, mendable, read_if_there, reason, write_bytes
from raymu.values import content_hash


class Rescue:
    """The directory of one sweep for what its storage loses. It has the files of a sweep's directory.

    Args:
        where: directory for all sweeps of this machine.
        lost: the sweep's own directory, which may be gone.
    """

    def __init__(self, where: Path, lost: Location) -> None:
        # Under its real path, wherever it is called from, and under the one given, whose links may be changed.
        known = dict.fromkeys([lost.real, lost.path] if lost.local else [str(lost)])
        self._places = [where / f"{lost.name}-{content_hash(one)}" for one in known]
        self.place, self._lost = next((one for one in self._places if one.exists()), self._places[0]), lost

    def keep(self, identity: dict[str, Any], rows: Sequence[Row], files: Mapping[str, bytes]) -> str:
        """Keep all that is known of the sweep; return where in a sentence, or why it cannot be kept.

        Args:
            files: its other files by name.
        """
        seal = seal_of(identity) or b""
        try:
            self.place.mkdir(parents=True, exist_ok=True)
            for name, content in {
                **files,
                SWEEP: as_json(identity),
                ROWS: b"".join(json_line(row, seal) for row in rows),
            }.items():
                write_bytes(locate(self.place), name, content)
            for other in self._places:
                if not other.exists():
                    other.symlink_to(self.place.name)
        except OSError as error:
            return f"Its {len(rows)} rows cannot be kept in {self.place} either: {reason(error)}"
        return f"Its {len(rows)} rows are kept in {self.place}, and the same command with --resume continues with them"

    def rows(self, identity: dict[str, Any], resume: bool) -> list[Row]:
        """Rows that are kept here, once the sweep's other files are where they were; none where nothing is kept.

        Raises:
            InputError: there are some, and the sweep is not to be resumed or is another one.
        """
        if not self.place.exists():
            return []
        here = locate(self.place)
        with mendable("read", here):
            stored, _ = identity_and_parts(here)
            rows = all_rows(here)
        lost = f"{self._lost} has lost a sweep, whose {len(rows)} rows are kept in {self.place}"
        other = "Choose another --name, or remove that directory if nobody needs them"
        if not resume:
            raise InputError(f"{lost}: the same command with --resume continues with them. {other}")
        if differing := list(differences(lasting(stored or {}), lasting(identity))):
            raise InputError(f"{lost}. This is another sweep: {'; '.join(differing)}. {other}")
        with mendable("write to", self._lost):
            for path in self.place.iterdir():
                if path.name != ROWS and read_if_there(self._lost, path.name) is None:
                    write_bytes(self._lost, path.name, path.read_bytes())
        return rows

    def clear(self) -> None:
        """Nothing is kept here any more."""
        with contextlib.suppress(OSError):
            shutil.rmtree(self.place.resolve())
            for other in self._places:
                other.unlink(missing_ok=True)
