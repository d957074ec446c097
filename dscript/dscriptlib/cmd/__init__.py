# SPDX-License-Identifier: Apache-2.0
"""One module per command: arguments in, lines and exit codes out."""
