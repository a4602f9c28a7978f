# SPDX-License-Identifier: Apache-2.0
"""The catalogue of rules. The first digit of an id says what a rule is about.

1 connection and files, 2 code, 3 policy and gate, 4 differential privacy, 5 what statistics show, 6 masks, 7 logs,
8 operation. Numbers that are missing are of rules that later versions bring, or that no file can decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fairflare.audit.rule import Rule
from fairflare.audit.rules.code import CODE
from fairflare.audit.rules.encrypted import ENCRYPTED
from fairflare.audit.rules.files import FILES
from fairflare.audit.rules.operation import OPERATION
from fairflare.audit.rules.privacy import PRIVACY_RULES
from fairflare.audit.rules.privacy_budget import PRIVACY_BUDGET
from fairflare.audit.rules.sums import SUMS
from fairflare.audit.rules.transport import TRANSPORT

_ALL = sorted(
    (*TRANSPORT, *FILES, *CODE, *PRIVACY_RULES, *PRIVACY_BUDGET, *SUMS, *ENCRYPTED, *OPERATION),
    key=lambda rule: rule.id,
)

#: Every rule by its id, in the order of ids.
RULES: Mapping[str, Rule] = MappingProxyType({rule.id: rule for rule in _ALL})

__all__ = ["RULES"]
