# SPDX-License-Identifier: Apache-2.0
"""D-Application Monitor: the modules behind dre-ingest, dre-reorder, dre-watch, dre-rules and dre-monitor."""
