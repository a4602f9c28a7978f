# SPDX-License-Identifier: Apache-2.0
"""What may leave a site, and the one way out."""
