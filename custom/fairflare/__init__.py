# SPDX-License-Identifier: Apache-2.0
"""FairFlare: group-fair federated learning for medical imaging on NVIDIA FLARE.

Importing this package loads nothing heavy: torch and FLARE are imported by the subpackages that need them.
"""

__version__ = "0.1.0"
