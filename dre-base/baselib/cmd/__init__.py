# SPDX-License-Identifier: Apache-2.0
"""The command modules of dre-base."""
