# SPDX-License-Identifier: Apache-2.0
"""`thaw`: let a frozen container go on."""

from dscriptlib.steps import verb

STEP = verb("thaw")
