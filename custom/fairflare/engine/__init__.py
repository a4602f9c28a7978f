# SPDX-License-Identifier: Apache-2.0
"""One round's steps without any transport: the site, the server, and a loop that drives them in one process."""
