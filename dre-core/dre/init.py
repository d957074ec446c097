# SPDX-License-Identifier: Apache-2.0
"""What a service says to systemd, where that has started it, by the protocol of sd_notify(3)."""

import contextlib
import os
import socket


class Init:
    """Takes the place where systemd hears out of the environment: what the service starts has nothing to say there."""

    def __init__(self) -> None:
        self.place = os.environ.pop("NOTIFY_SOCKET", "")  # empty where nobody hears

    def say(self, text: str) -> None:
        """Send *text*, such as ``READY=1``; nobody there, nothing lost."""
        if self.place:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, contextlib.suppress(OSError):
                sender.sendto(text.encode(), self.place.replace("@", "\0", 1))
