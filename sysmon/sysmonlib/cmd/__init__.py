# SPDX-License-Identifier: Apache-2.0
"""The commands of the D-System Monitor: arguments in, exit code out."""
