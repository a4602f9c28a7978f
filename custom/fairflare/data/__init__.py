# SPDX-License-Identifier: Apache-2.0
"""A site's own data: the CSV contract, images, checks before work starts, synthetic and public data sets.

Nothing here imports torch or NVIDIA FLARE, and no message names a patient, a path or a value: counts only.
"""
