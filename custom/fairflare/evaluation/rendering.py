# SPDX-License-Identifier: Apache-2.0
"""The one way from a template to a page: all is escaped, treacherous characters are written out.

Names of plans, sites and groups come from other organisations; a page's own policy forbids whatever it does not use.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fairflare.evaluation.phrases import visible


def rendered(template: str, **values: Any) -> str:
    """The template ``templates/<template>`` with ``values``; it also gets ``style_sha256``, of ``page.css``."""
    environment = Environment(
        loader=PackageLoader("fairflare.evaluation", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = environment.get_template("page.css").render()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return environment.get_template(template).render(style_sha256=digest, **values)


def _visible(value: Any) -> Any:
    """Write treacherous characters out; text that the template made passes as it is."""
    return visible(value) if type(value) is str else value
