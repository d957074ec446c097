# SPDX-License-Identifier: Apache-2.0
"""What mod_wsgi runs for the D-Box; see dbox-apache(7)."""

from dboxlib.apache import application  # noqa: F401
