# SPDX-License-Identifier: Apache-2.0
"""The CD shop as three apps: made, filled with data, given releases. Only the programs of D-RE are used for that."""

import io
import json
import secrets
import tarfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from demolib import catalogue
from demolib.places import ADDRESSES, APP, DB, JOBS, PACKAGES, SHOP, TREE, TREES, WEB
from demolib.programs import Failed, call, dre, listens, wait

GOOD, BAD, LEAK, TAG = "v1", "v2", "v3", "good"
CPU = {WEB: 100, APP: 80, DB: 80}  # percent of one core
MEMORY = {WEB: "256M", APP: "512M", DB: "512M"}
PORTS = {WEB: 80, APP: 8000, DB: 3306}
# The app's program comes as the last file of what is put into it, and is what the app runs from then on.
BOOT = "until [ -x /srv/shop/start ]; do sleep 0.05; done; exec /srv/shop/start"
SWITCH = "ln -sfn releases/{0} /srv/shop/next && mv -T /srv/shop/next /srv/shop/current"
RELOAD = 'kill -HUP "$(cat /run/shop.pid)"'


def make_tree() -> None:
    """The tree all three apps are based on; kept from an earlier time unless its packages were others."""
    argv = ["dre-base", "--tree", TREE, "--output", str(TREES), "--package", *PACKAGES]
    TREES.mkdir(parents=True, exist_ok=True)
    try:
        call(*argv, timeout=900)
    except Failed:
        call(*argv, "--replace", timeout=900)


def make() -> None:
    """Create, start and fill the three apps at the same time, then wait until each answers on its port."""
    password = secrets.token_hex(16)
    with ThreadPoolExecutor() as pool:
        work = [pool.submit(_web), pool.submit(_application, password), pool.submit(_database, password)]
    for done in work:
        done.result()
    for name in PORTS:
        answers(name)


def deploy(release: str) -> None:
    """Put *release* into the application's app and make it the current one; `reload` brings it into service."""
    directory = f"srv/shop/releases/{release}"
    _put(APP, {**_read(SHOP / "releases" / GOOD, directory), **_read(SHOP / "releases" / release, directory)})
    run_in(APP, SWITCH.format(release))


def reload() -> None:
    """Let the application server start workers with the current release; old ones finish what they are doing."""
    run_in(APP, RELOAD)


def announce(release: str) -> None:
    """Tell the monitor that a release goes into service, as who deploys it does."""
    dre("dre-event", "--send", "shop.release", f"version={release}", f"app={APP}")


def save_good() -> None:
    """Keep the application as it is now as the snapshot to return to, which needs it stopped for a moment."""
    dre("dre-app", "stop", APP)
    dre("dre-app", "snapshot", "save", APP, TAG)
    dre("dre-app", "start", APP)
    answers(APP)


def make_jobs() -> None:
    """Create the batch jobs, each an app of its own with a reader's account; none is started."""
    password = secrets.token_hex(16)
    for address in JOBS.values():
        account = f"'batch'@'{address}'"
        sql(f"CREATE USER {account} IDENTIFIED BY '{password}'; GRANT SELECT, LOCK TABLES ON shop.* TO {account};")
    access = _access("batch", password)
    for name, address in JOBS.items():
        options = ["--base", str(TREES / TREE), "--ip", f"{address}/24", "--memory", "128M"]
        dre("dre-app", "create", name, *options, "--", "/usr/bin/python3", "/srv/job.py")
        dre("dre-app", "push", name, str(SHOP / "batch" / f"{name}.py"), "/srv/job.py")
        dre("dre-app", "push", name, "-", "/srv/settings.json", stdin=access)


def state(name: str) -> str:
    """What dre-app says of an app."""
    return dre("dre-app", "status", name, ok=(0, 1)).decode().strip()


def answers(name: str, within: float = 60) -> None:
    """Wait until an app accepts connections on its port."""
    wait(lambda: listens(PORTS[name], ADDRESSES[name]), within, f"{name} on port {PORTS[name]}")


def destroy(name: str) -> None:
    """Destroy an app; it may not exist or be half made."""
    dre("dre-app", "destroy", name, "--force", ok=(0, 3))


def run_in(name: str, command: str, stdin: bytes | None = None) -> bytes:
    """What a shell command printed inside an app."""
    return dre("dre-app", "exec", name, "--", "/bin/sh", "-c", command, stdin=stdin)


def sql(statement: str) -> list[str]:
    """The lines that a SQL statement gives, asked inside the database's app."""
    return run_in(DB, "mariadb --batch --skip-column-names", statement.encode()).decode().splitlines()


def orders_kept(numbers: list[int]) -> int:
    """How many of the order numbers are in the database."""
    marks = ", ".join(map(str, numbers))
    return int(sql(f"SELECT COUNT(*) FROM shop.orders WHERE id IN ({marks})")[0]) if numbers else 0


def _start(name: str) -> None:
    options = ["--base", str(TREES / TREE), "--ip", f"{ADDRESSES[name]}/24"]
    options += ["--cpu", str(CPU[name]), "--memory", MEMORY[name]]
    dre("dre-app", "create", name, *options, "--", "/bin/sh", "-c", BOOT)
    dre("dre-app", "start", name)


def _web() -> None:
    _start(WEB)
    _put(WEB, _read(SHOP / "web"))


def _application(password: str) -> None:
    _start(APP)
    deploy(GOOD)
    _put(APP, {"srv/shop/settings.json": _access("shop", password), **_read(SHOP / "app")})


def _access(user: str, password: str) -> bytes:
    """Where the database is, and as whom it is asked, as the programs read it."""
    return json.dumps({"host": ADDRESSES[DB], "user": user, "password": password, "database": "shop"}).encode()


def _database(password: str) -> None:
    _start(DB)
    _put(DB, _read(SHOP / "db"))
    answers(DB)
    account = f"'shop'@'{ADDRESSES[APP]}'"
    rights = f"CREATE USER {account} IDENTIFIED BY '{password}'; GRANT SELECT ON shop.* TO {account};\n"
    rights += f"GRANT INSERT ON shop.orders TO {account};\n"
    sql("".join([(SHOP / "db/schema.sql").read_text(), *catalogue.sql(), rights]))


def _read(directory: Path, place: str = "srv/shop") -> dict[str, bytes]:
    """The files below *directory* as they are to lie below *place*."""
    files = [path for path in directory.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {f"{place}/{path.relative_to(directory)}": path.read_bytes() for path in files}


def _put(name: str, files: Mapping[str, bytes]) -> None:
    """Unpack *files* into an app as root's, readable by all whatever the modes here; `start` comes last."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for directory in sorted({str(parent) for path in files for parent in Path(path).parents} - {".", "srv"}):
            tar.addfile(_member(directory, tarfile.DIRTYPE, 0o755))
        for path in sorted(files, key=lambda path: (path.endswith("/start"), path)):
            octets = files[path]
            member = _member(path, tarfile.REGTYPE, 0o755 if octets.startswith(b"#!") else 0o644)
            member.size = len(octets)
            tar.addfile(member, io.BytesIO(octets))
    run_in(name, "tar --extract --directory /", archive.getvalue())


def _member(path: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(path)
    member.type, member.mode, member.mtime = kind, mode, int(time.time())
    return member
