# SPDX-License-Identifier: Apache-2.0
"""Measurements of time and memory; ``python -m tests.benchmarks`` runs them."""
