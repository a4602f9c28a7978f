# SPDX-License-Identifier: Apache-2.0
"""What a file in the store ended with when this site last wrote it, kept apart from the store: in the kit.

Each file of the store is a chain of hashes, so a copy of an older one is as good a chain. An anchor holds the hash of
the newest event, and a chain without it was put back to an older state, cut off at its end, or lost: it is refused by
name before anything leaves. The anchor is written after the event, so a power failure leaves it one event behind, and
the chain has that event still.

It finds a store that came back from a backup without its kit. If both came back, only the other hospitals can tell
(:meth:`RevealMemory.has`); and whoever may write into the kit can take the anchor away.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from fairflare.privacy.disk import make_folder, sync_folder

#: Folder of a kit with the anchors.
ANCHORS: Final = "anchors"
_LINE: Final = re.compile(r"[0-9a-f]{64}\n")


class Anchor:
    """The anchor of one file of the store; it is nothing until the first event.

    Parameters
    ----------
    file
        Where the newest event's hash is kept.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self) -> str | None:
        """The newest event's hash (hex), ``None`` if there is none yet.

        Raises
        ------
        OSError
            If the file cannot be read, or is none of ours.
        """
        try:
            text = self._file.read_text(encoding="ascii")
        except FileNotFoundError:
            return None
        except UnicodeDecodeError:
            text = ""
        if _LINE.fullmatch(text) is None:
            raise OSError("an anchor that is none")
        return text.strip()

    def write(self, event: str) -> None:
        """Keep the newest event's hash (hex); on disk when this returns. Raises :class:`OSError`."""
        make_folder(self._file.parent)
        draft = self._file.with_name(f"{self._file.name}.new")
        opened = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        try:
            os.write(opened, f"{event}\n".encode("ascii"))
            os.fsync(opened)
        finally:
            os.close(opened)
        os.replace(draft, self._file)
        sync_folder(self._file.parent)


def decisions_anchor(kit: Path) -> Anchor:
    """The anchor of a site's list of decisions, in its kit (the folder that holds ``startup/``)."""
    return Anchor(kit / ANCHORS / "decisions")


def reveals_anchor(kit: Path, data_set: str) -> Anchor:
    """The anchor of a data set's memory of what was revealed, in the site's kit."""
    return Anchor(kit / ANCHORS / f"reveals-{data_set}")


def ledger_anchor(kit: Path, data_set: str) -> Anchor:
    """The anchor of a data set's privacy ledger, in the site's kit."""
    return Anchor(kit / ANCHORS / f"ledger-{data_set}")
