# SPDX-License-Identifier: Apache-2.0
"""`rejoin`: connect an isolated container again."""

from dscriptlib.steps import verb

STEP = verb("rejoin")
