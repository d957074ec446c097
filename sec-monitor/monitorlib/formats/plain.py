# SPDX-License-Identifier: Apache-2.0
"""Our own form, one line of JSON for each event: what --from and --to mean when they are not given."""

from dre import event

from monitorlib.formats import filled as records

__all__ = ["read", "records", "write"]
read = event.parse
write = event.format
