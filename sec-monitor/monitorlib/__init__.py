# SPDX-License-Identifier: Apache-2.0
"""D-Application Monitor: the modules behind dre-ingest, -reorder, -correlate, -watch, -rules, -monitor."""
