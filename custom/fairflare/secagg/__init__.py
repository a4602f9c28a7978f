# SPDX-License-Identifier: Apache-2.0
"""Secure sum: the only aggregation primitive. Each protection implements the same two halves (``protection.py``)."""
