# SPDX-License-Identifier: Apache-2.0
"""What mod_wsgi runs for the page of the monitor; see dre-rules(8)."""

from monitorlib.page import application  # noqa: F401
