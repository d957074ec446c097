# SPDX-License-Identifier: Apache-2.0
"""What mod_wsgi runs for events of other hosts; see dre-ingest(8)."""

from monitorlib.web import application  # noqa: F401
