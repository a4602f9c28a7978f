# SPDX-License-Identifier: Apache-2.0
"""Where a site keeps what must last: outside FLARE's workspace, and where nobody else can write."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from fairflare.errors import PolicyError

_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def store_folder(store: str, site: str | None, workspace: Path | None, *below: str) -> Path:
    """The folder ``<store>[/<site>]/<below>``, its links followed; it need not be there yet.

    Parameters
    ----------
    store, site
        The policy's folder, and the site's in it (simulators only).
    workspace
        FLARE's; ``None`` where a person only reads what is there.
    below
        Folders within the site's.

    Raises
    ------
    PolicyError
        ``FF-POLICY-STORE``: inside the workspace, also by way of a link; or others may write to it (its mode, or that
        of a folder in it; or anybody may rename what lies in a folder above).
    """
    top = Path(os.path.realpath(store))
    folder = Path(os.path.realpath(top.joinpath(*([] if site is None else [site]), *below)))
    if not folder.is_relative_to(top):
        _refuse("a folder in 'store' that is a link to somewhere else", "a folder of its own")
    if workspace is not None and folder.is_relative_to(os.path.realpath(workspace)):
        _refuse("a 'store' inside FLARE's workspace, which is erased or replaced", "a folder outside of it")
    for one in (folder, *folder.parents):
        mode = _mode(one)
        if one.is_relative_to(top):
            open_to_others = bool(mode & _OTHERS)
        else:  # the sticky bit of /tmp keeps others from renaming what is not theirs
            open_to_others = bool(mode & stat.S_IWOTH) and not mode & stat.S_ISVTX
        if open_to_others:
            _refuse("a 'store' that other users of this machine can write to", "a folder that only this user can")
    return folder


def _mode(folder: Path) -> int:
    try:
        return folder.stat().st_mode
    except OSError:  # not made yet, or below a folder that this user may not enter: then nothing can be written either
        return 0


def _refuse(got: str, expected: str) -> None:
    raise PolicyError(
        "FF-POLICY-STORE",
        got=got,
        expected=expected,
        next_step="choose another folder in site_policy.json, or correct its access rights (chmod 700), and move what "
        "is in the old one",
    )
