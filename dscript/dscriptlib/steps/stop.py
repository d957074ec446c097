# SPDX-License-Identifier: Apache-2.0
"""`stop`: stop a container; its compensation starts it."""

from dscriptlib.steps import verb

STEP = verb("stop", back="start")
