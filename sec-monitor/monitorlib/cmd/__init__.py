# SPDX-License-Identifier: Apache-2.0
"""The commands of the D-Application Monitor: arguments in, exit code out."""
