# SPDX-License-Identifier: Apache-2.0
"""Python over weft's C libraries."""
