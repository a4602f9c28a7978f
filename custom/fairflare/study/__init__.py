# SPDX-License-Identifier: Apache-2.0
"""Studies: tasks x methods x configurations x seeds x protections, compared by one rule and kept run by run.

A study is one file. Every method gets the same number of configurations, starts from the same weights and meets the
same data; configurations are chosen on validation data only; a run that fails stays, and is shown.
"""
