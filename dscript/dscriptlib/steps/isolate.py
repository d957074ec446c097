# SPDX-License-Identifier: Apache-2.0
"""`isolate`: cut a container off from the network while it runs on; its compensation lets it rejoin."""

from dscriptlib.steps import verb

STEP = verb("isolate", back="rejoin")
