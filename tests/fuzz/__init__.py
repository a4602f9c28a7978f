# SPDX-License-Identifier: Apache-2.0
"""Fuzzing of everything in masked aggregation that takes bytes from others; ``make fuzz``."""
