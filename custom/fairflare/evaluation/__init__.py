# SPDX-License-Identifier: Apache-2.0
"""Reading a finished run: intervals, group results, gaps, warnings, and how two runs differ."""
