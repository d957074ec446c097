# SPDX-License-Identifier: Apache-2.0
"""`restart`: stop a container and start it again."""

from dscriptlib.steps import verb

STEP = verb("restart")
