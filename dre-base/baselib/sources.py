# SPDX-License-Identifier: Apache-2.0
"""Which archives a tree is made from: those of this host's apt for the suite, with their keys. Reads, writes nothing.

apt itself is asked for its sources, so that both forms of its files are understood as apt understands them. It
does not tell the key of an entry; that alone is read from the entry's file.
"""

import re
from pathlib import Path

from dre.errors import DreError, UsageError
from dre.run import run

from baselib.wish import Wish

OS_RELEASE = Path("/etc/os-release")
_FIELDS = "$(SOURCESENTRY)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)"
_POCKETS = ("", "-updates", "-security")
# What apt needs to reach the archives from here; the rest of the host's apt settings stays on the host.
_CARRIED = re.compile(r"Acquire::((https?|ftp)::|Retries|Check-|ForceIPv|Queue-Mode).*")


def os_release() -> dict[str, str]:
    """The fields of /etc/os-release."""
    lines = (line.partition("=") for line in OS_RELEASE.read_text().splitlines())
    return {key: value.strip("\"'") for key, _, value in lines}


def default_suite() -> str:
    """The suite of this host: bookworm, noble, … Raises UsageError where there is none."""
    suite = os_release().get("VERSION_CODENAME")
    if not suite:
        raise UsageError(f"{OS_RELEASE} names no VERSION_CODENAME; give --suite")
    return suite


def of_host(suite: str) -> str:
    """The host's entries for *suite* as deb822 stanzas; empty when it has none.

    Only the distribution's own archives count: what other vendors add to the host has no place in a tree.
    """
    origin = os_release().get("ID", "").lower()
    components: dict[tuple[str, str, str], list[str]] = {}
    for file, uri, release, component in _targets(origin):
        if release in [suite + pocket for pocket in _POCKETS]:
            known = components.setdefault((file, uri, release), [])
            if component not in known:
                known.append(component)
    return "\n".join(
        f"Types: deb\nURIs: {uri}\nSuites: {release}\nComponents: {' '.join(names)}\n{_signed_by(file, uri, release)}"
        for (file, uri, release), names in components.items()
    )


def look_up(wish: Wish) -> None:
    """Raise DreError where the host's lists have the suite of *wish*, but no word of a package; else nothing is known.

    A name that another package only provides or asks for is taken: what that comes to is apt's business.
    """
    if wish.mirror or not wish.wanted:
        return
    origin = os_release().get("ID", "").lower()
    rows = _ask("--format", "$(ORIGIN)|$(RELEASE)|$(FILENAME)", "Created-By: Packages")
    held = [Path(file).is_file() for vendor, release, file in rows if (vendor.lower(), release) == (origin, wish.suite)]
    if not held or not all(held):
        return
    names = set(run(["apt-cache", "--all-names", "pkgnames"]).stdout.decode().split())
    unknown = [package for package in wish.wanted if re.split("[:=]", package)[0] not in names]
    if unknown:
        where = f"the host's package lists of {wish.suite}, which apt-get update brings up to date"
        raise DreError(f"{', '.join(unknown)}: not in {where}")


def _targets(origin: str) -> list[tuple[str, str, str, str]]:
    """(file, URI, release, component) of the host's binary archives that come from *origin* by the network."""
    fetched = _ask("--format", f"$(ORIGIN)|{_FIELDS}", "Created-By: Packages")
    if fetched:
        rows = [row[1:] for row in fetched if row[0].lower() == origin]
    else:  # no `apt-get update` yet: apt knows no origins; its files have what the installer wrote
        rows = _ask("--no-release-info", "--format", _FIELDS, "Created-By: Packages")
    return [
        (file.rpartition(":")[0], uri, release, component)
        for file, uri, release, component in rows
        if uri.startswith(("http://", "https://"))
    ]


def _ask(*argv: str) -> list[list[str]]:
    return [line.split("|") for line in run(["apt-get", "indextargets", *argv]).stdout.decode().splitlines()]


def _signed_by(file: str, uri: str, release: str) -> str:
    """The `Signed-By` field of the entry in *file*, or nothing: then apt's own keyrings count, as on the host."""
    text = Path(file).read_text()
    if not file.endswith(".sources"):
        for line in text.splitlines():
            match = re.match(r"\s*deb\s+\[([^]]*)\]\s+(\S+)\s+(\S+)", line)
            if match and match[2].rstrip("/") == uri.rstrip("/") and match[3] == release:
                option = re.search(r"signed-by=(\S+)", match[1], re.IGNORECASE)
                return f"Signed-By: {option[1].replace(',', ' ')}\n" if option else ""
        return ""
    for stanza in re.split(r"\n\s*\n", text):
        fields = _fields(stanza)
        uris = [word.rstrip("/") for word in fields.get("uris", "").split()]
        if uri.rstrip("/") in uris and release in fields.get("suites", "").split() and "signed-by" in fields:
            return f"Signed-By:{fields['signed-by']}\n"
    return ""


def _fields(stanza: str) -> dict[str, str]:
    """The fields of a deb822 stanza, names in lower case, values with their continuation lines as they stand."""
    fields: dict[str, str] = {}
    name = ""
    for line in stanza.splitlines():
        if line.startswith("#"):
            continue
        if line[:1] in (" ", "\t") and name:
            fields[name] += f"\n{line}"
        elif ":" in line:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value
    return fields


def apt_options() -> list[str]:
    """The host's apt settings that decide how an archive is reached (proxies, retries), one each."""
    lines = run(["apt-config", "dump"]).stdout.decode().splitlines()
    return [line for line in lines if _CARRIED.fullmatch(line) and not line.endswith(' "";')]
