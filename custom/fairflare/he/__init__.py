# SPDX-License-Identifier: Apache-2.0
"""Homomorphic encryption (CKKS) of masked statistics, so that sums are opened by the hospitals and not by the server.

The server passes every hospital's signed ciphertext on and holds no key. All hospitals hold the same secret key: it
keeps numbers from the server, not from each other. That is what the masks underneath are for.
"""
