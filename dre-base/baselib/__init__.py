# SPDX-License-Identifier: Apache-2.0
"""The private modules of dre-base."""
