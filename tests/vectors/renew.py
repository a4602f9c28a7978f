# SPDX-License-Identifier: Apache-2.0
"""New kit keys, certificates and signatures for the session files, after JOIN has changed; see the README.

``python -m tests.vectors.renew``, then ``python tests/vectors/straight.py --write``.
"""

from __future__ import annotations

import json

from fairflare.secagg.identity import development_identity
from fairflare.secagg.transcript import signed_join
from tests.vectors.straight import FILES, FOLDER, join_of, text


def main() -> None:
    """Put them in; the private keys are forgotten."""
    for file in (FOLDER / name for name in FILES):
        given = json.loads(file.read_text(encoding="utf-8"))["inputs"]
        for name, site in given.get("sites", {}).items():
            identity = development_identity(name)
            site |= {"spki_sha256": identity.spki.hex(), "certificate": identity.certificate.hex()}
            site["signature"] = identity.sign(signed_join(join_of(given, name))).hex()
        file.write_text(text(given), encoding="utf-8")


if __name__ == "__main__":
    main()
