# SPDX-License-Identifier: Apache-2.0
"""The audit: is this job, is this start-up kit, what a hospital has agreed to? From files only, and repeatable.

``auditor`` applies the rules of ``rules`` to what ``evidence`` reads, and says for each whether it holds, does not
hold, or cannot be decided; ``report`` writes that down. The auditor does not trust the audited: it imports nothing of
FLARE, of torch, or of the parts that run jobs. Importing this package loads none of it.
"""
