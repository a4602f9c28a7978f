# SPDX-License-Identifier: Apache-2.0
"""Group fairness from sums: what each site adds up, the penalty and its coefficients, and the metrics."""
