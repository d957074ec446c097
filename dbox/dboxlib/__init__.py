# SPDX-License-Identifier: Apache-2.0
"""The private modules of the D-Box: key hierarchy, store, sequencer, WSGI application, and the commands."""
