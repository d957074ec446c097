# SPDX-License-Identifier: Apache-2.0
"""A private MariaDB server for tests: own directory and socket, no network; gone with the test run."""

import atexit
import functools
import os
import pathlib
import pwd
import shutil
import subprocess
import tempfile
import time

import dboxkit
import pytest

ACCOUNTS = """
CREATE USER IF NOT EXISTS dbox@localhost IDENTIFIED VIA unix_socket;
CREATE USER IF NOT EXISTS 'dbox-web'@localhost IDENTIFIED VIA unix_socket;
GRANT SELECT, INSERT ON {0}.* TO dbox@localhost;
GRANT SELECT ON {0}.* TO 'dbox-web'@localhost;
"""


def account():
    """Who runs the server: mysql comes with a package that starts one of the host's own, which tests do not need."""
    try:
        return pwd.getpwnam("mysql").pw_name
    except KeyError:
        return "nobody"


class Server:
    """One mariadbd below *path*."""

    def __init__(self, path, *options):
        self.path = path
        self.socket = path / "socket"
        self.options = options
        self.process = None
        path.chmod(0o755)
        data = path / "data"
        data.mkdir()
        for owned in (data, path):
            shutil.chown(owned, account())
        subprocess.run(
            [
                *("mariadb-install-db", "--no-defaults", f"--datadir={data}", f"--user={account()}", "--skip-test-db"),
                "--auth-root-authentication-method=socket",
                "--auth-root-socket-user=root",
            ],
            check=True,
            capture_output=True,
            timeout=120,
        )
        self.start()

    def start(self, *more):
        log = (self.path / "log").open("ab")
        self.process = subprocess.Popen(
            [
                *("mariadbd", "--no-defaults", f"--user={account()}", f"--datadir={self.path / 'data'}"),
                *(f"--socket={self.socket}", "--skip-networking", f"--pid-file={self.path / 'pid'}"),
                *("--max-allowed-packet=64M", "--innodb-buffer-pool-size=64M", "--innodb-log-file-size=64M"),
                *("--skip-log-bin", "--skip-name-resolve", *self.options, *more),
            ],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
        log.close()
        deadline = time.monotonic() + 60
        while subprocess.run(self.client("-e", "SELECT 1"), capture_output=True, check=False).returncode:
            assert self.process.poll() is None and time.monotonic() < deadline, (self.path / "log").read_text()[-3000:]
            time.sleep(0.05)

    def client(self, *argv):
        return ["mariadb", "--no-defaults", f"--socket={self.socket}", "-N", "-B", *argv]

    def sql(self, text, user=None):
        """What the server's own client prints."""
        done = subprocess.run(
            self.client(*([f"--user={user}"] if user else [])), input=text.encode(), capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def url(self, name):
        return f"mysql://localhost/{name}?unix_socket={self.socket}"

    def stop(self, number=15):
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(60)
            self.process = None


def needed():
    """Skip without what a server of ours needs."""
    if os.geteuid() != 0:
        pytest.skip("needs root, who becomes the server's user, dbox and dbox-web")
    if shutil.which("mariadbd", path="/usr/sbin:/usr/bin") is None:
        pytest.skip("no mariadbd: apt-get install mariadb-server-core")
    pytest.importorskip("pymysql", reason="no python3-pymysql")
    try:
        pwd.getpwnam("dbox-web")
    except KeyError:
        pytest.skip("no user dbox-web: it comes with the installed package")


@functools.lru_cache(maxsize=1)
def server():
    """The server of this test run. It is in memory where there is room: no test cuts its power."""
    memory = pathlib.Path("/dev/shm")  # noqa: S108
    room = memory.is_dir() and shutil.disk_usage(memory).free > 4 << 30
    made = Server(pathlib.Path(tempfile.mkdtemp(prefix="dbox-mariadb-", dir=memory if room else None)))
    atexit.register(lambda: (made.stop(9), shutil.rmtree(made.path, ignore_errors=True)))
    return made


def box(where=None, **keys):
    """A D-Box as dboxkit.copy makes it, whose log is on the server."""
    from dboxlib import store

    where = where or server()
    name = "t" + os.urandom(6).hex()
    where.sql(f"CREATE DATABASE {name};" + ACCOUNTS.format(name))
    made = dboxkit.copy(DRE_DBOX_DATABASE=where.url(name), **keys)
    made.server_name = name
    old = store.open(made.database)
    rows = old.engine.rows("SELECT kind, fingerprint, pem FROM certificate ORDER BY number")
    store.create(where.url(name), old.origin, old.box, rows)
    new = store.open(where.url(name), True)
    for client in old.clients(0):
        new.register(client)
    new.close()
    old.close()
    for path in made.state.glob(f"{made.database.name}*"):
        path.unlink()
    return made


@pytest.fixture(params=["sqlite", "mariadb"])
def either(request):
    """A D-Box on each kind of storage."""
    if request.param == "mariadb":
        needed()
    made = of(request.param)
    yield made
    dboxkit.remove(made)


def of(storage):
    """A D-Box on this kind of storage."""
    made = box() if storage == "mariadb" else dboxkit.copy()
    made.storage = storage
    return made
