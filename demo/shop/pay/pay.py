# SPDX-License-Identifier: Apache-2.0
"""The payment system of the CD shop, as small as can be: it answers everything, and counts payments in its memory.

X-Release names this very run of the program, so that who asks can tell whether it was started anew.
"""

import http.server
import itertools
import uuid

RUN = uuid.uuid4().hex
numbers = itertools.count(1)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(200, b"payments are taken\n")

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.answer(201, b"paid\n", Location=f"/order/{next(numbers)}")

    def answer(self, status, octets, **headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(octets)), "X-Release": RUN}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(octets)

    def log_message(self, *words):
        pass


http.server.ThreadingHTTPServer(("", 80), Handler).serve_forever()
