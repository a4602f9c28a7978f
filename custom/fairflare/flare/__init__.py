# SPDX-License-Identifier: Apache-2.0
"""FairFlare on NVIDIA FLARE: the only package that imports ``nvflare``."""
