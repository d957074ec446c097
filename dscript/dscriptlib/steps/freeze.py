# SPDX-License-Identifier: Apache-2.0
"""`freeze`: stop the processes of a container where they are; its compensation thaws it."""

from dscriptlib.steps import verb

STEP = verb("freeze", back="thaw")
