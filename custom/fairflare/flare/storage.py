# SPDX-License-Identifier: Apache-2.0
"""The server's store of jobs and snapshots, inside its own kit.

FLARE's storage takes absolute paths only, and its template puts them in ``/tmp``: shared with every user of the machine
and every other server on it. A kit does not know where it will be unpacked, so here a path may be relative to it.
"""

from __future__ import annotations

import os

from nvflare.app_common.storages.filesystem_storage import FilesystemStorage


class KitStorage(FilesystemStorage):  # type: ignore[misc]
    """Files below a folder that is relative to FLARE's workspace, which its processes work in.

    Parameters
    ----------
    root_dir
        The folder; made, for its owner only, if it is not there.
    uri_root
        As in FLARE's own class: root of the objects' names.
    """

    def __init__(self, root_dir: str, uri_root: str = "/") -> None:
        folder = os.path.abspath(root_dir)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        super().__init__(root_dir=folder, uri_root=uri_root)

    def list_objects(self, path: str, without_tag: str | None = None) -> list[str]:
        """Names of the objects in a folder; of one that is not there yet, none."""
        if not os.path.isdir(self._object_path(path)):
            return []
        found: list[str] = super().list_objects(path, without_tag)
        return found
