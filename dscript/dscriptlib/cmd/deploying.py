# SPDX-License-Identifier: Apache-2.0
"""The verbs of dscript that put scripts in force: deploy, approve (of a script), rollback, versions; and person."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dre import cli, files, units
from dre.errors import DONE, FAILED, DreError, NotPermittedError, UsageError

from dscriptlib.cmd import dscript as command

LIMIT = 64 * 1024  # octets of a key or a certificate
ROLES = ("author", "approver")
VERSIONS: list[cli.Column] = [
    ("SCRIPT", "script", 16),
    ("NUMBER", "number", 6),
    ("TIME", "time", 24),
    ("HOW", "how", 8),
    ("BY", "by", 12),
    ("ID", "id", 12),
    ("SHA256", "sha256", 64),
    ("NOTE", "note", 0),
]
PERSONS: list[cli.Column] = [
    ("NAME", "name", 16),
    ("ROLE", "role", 8),
    ("TIME", "time", 24),
    ("FINGERPRINT", "fingerprint", 0),
]


def add(verbs: Any) -> None:
    """Add the verbs to those of dscript."""
    deploy = cli.verb(verbs, "deploy", deploy_file, "check a script and put it in force, or with --key propose it")
    deploy.add_argument("file", metavar="FILE", type=Path)
    deploy.add_argument("--key", metavar="PEM", type=Path, help="sign with the private key of a registered person")
    deploy.add_argument("--text", default="", help="why, for the evidence")
    rollback = cli.verb(verbs, "rollback", roll_back, "put an earlier version of a script in force again")
    rollback.add_argument("name", metavar="SCRIPT", type=units.name)
    rollback.add_argument("--to", metavar="NUMBER", type=int, help="as versions tells it (default: the one before)")
    rollback.add_argument("--text", default="", help="why, for the evidence")
    shown = cli.verb(verbs, "versions", show_versions, "print which versions came in force, and what waits")
    shown.add_argument("name", metavar="SCRIPT", type=units.name, nargs="?")
    person = cli.verb(verbs, "person", change_person, "say who may sign scripts and answer, or list them")
    person.add_argument("name", metavar="NAME", type=units.name, nargs="?")
    person.add_argument("--role", choices=ROLES, help="an approver may do all that an author may")
    person.add_argument("--certificate", metavar="PEM", type=Path, help="how the person is known")
    person.add_argument("--revoke", action="store_true", help="the person has no role any more")


def deploy_file(ctx: cli.Context) -> int:
    """dscript deploy FILE"""
    from dscriptlib import load, versions

    octets = command.read(ctx.args.file, load)
    script = _checked(ctx, octets, str(ctx.args.file))
    if script is None:
        return FAILED
    note = command.text(ctx)
    if ctx.args.key is None:
        versions.deploy(ctx.conf, script, octets, note)
        row = {"name": script.name, "sha256": script.sha256}
        ctx.out.row(row, [("NAME", "name", 0), ("SHA256", "sha256", 0)])
    else:
        made = versions.propose(ctx.conf, script, octets, _key(ctx.args.key), note)
        row = {"id": made.id, "name": script.name, "sha256": script.sha256}
        ctx.out.row(row, [("ID", "id", 0), ("NAME", "name", 0), ("SHA256", "sha256", 0)])
        ctx.say(f"{script.name} waits for another person: dscript approve {made.id} --key PEM")
    return DONE


def approve_script(ctx: cli.Context) -> int:
    """dscript approve ID: of a script that another person proposed."""
    from dscriptlib import store, versions

    made, script = versions.proposed(ctx.conf, ctx.args.request)
    note = command.text(ctx)
    if ctx.args.refuse:
        versions.refuse(ctx.conf, made.id, note)
        return DONE
    if ctx.args.key is None:
        raise NotPermittedError(f"{made.id}: to approve a script, sign it: --key")
    path = store.directory(ctx.conf) / "versions" / f"{script.sha256}.yaml"
    if _checked(ctx, path.read_bytes(), str(path)) is None:
        return FAILED
    done = versions.approve(ctx.conf, made.id, _key(ctx.args.key))
    ctx.say(f"{done.script}: version {done.number} is in force: {done.sha256[:12]}")
    return DONE


def roll_back(ctx: cli.Context) -> None:
    """dscript rollback SCRIPT"""
    from dscriptlib import versions

    done = versions.rollback(ctx.conf, ctx.args.name, ctx.args.to, command.text(ctx))
    ctx.say(f"{done.script}: version {done.number} is in force: {done.sha256[:12]}")


def show_versions(ctx: cli.Context) -> None:
    """dscript versions [SCRIPT]"""
    from dscriptlib import agreement, versions

    wanted = ctx.args.name
    rows: list[dict[str, Any]] = []
    for name in versions.names(ctx.conf) if wanted is None else [wanted]:
        rows += [{**asdict(one), "id": None} for one in versions.history(ctx.conf, name)]
    for one in versions.proposals(ctx.conf):
        if wanted in (None, one.script):
            by = one.by(agreement.PROPOSE)
            row = {"script": one.script, "number": None, "time": one.time, "sha256": one.sha256, "before": one.before}
            rows.append({**row, "how": "proposed", "by": by, "signed": [by], "note": one.note, "id": one.id})
    ctx.out.table(rows, VERSIONS)


def change_person(ctx: cli.Context) -> None:
    """dscript person [NAME]"""
    from dscriptlib import persons, store, versions

    name, role, path = ctx.args.name, ctx.args.role, ctx.args.certificate
    if name is None:
        if role or path or ctx.args.revoke:
            raise UsageError("say whose: NAME is missing")
        rows = ({**asdict(one), "fingerprint": one.fingerprint} for one in persons.all(ctx.conf))
        ctx.out.table(rows, PERSONS)
    elif ctx.args.revoke:
        if role or path:
            raise UsageError("--revoke goes with NAME alone")
        persons.revoke(ctx.conf, name)
    elif role is None:
        raise UsageError("--role or --revoke is missing")
    else:
        persons.register(ctx.conf, name, role, None if path is None else files.read(path, LIMIT))
        for deployed in store.deployed(ctx.conf):
            try:
                versions.require(ctx.conf, store.read(deployed)[0])
            except DreError as error:
                ctx.say(f"not obeyed from the next start of the engine on, until two persons have signed it: {error}")


def _checked(ctx: cli.Context, octets: bytes, path: str) -> Any:
    """The script, if it has no error, also together with those in force; findings go to stderr."""
    from dscriptlib import between, check, store

    script, findings = check.check(octets, path)
    if script is not None:
        others = [(str(other), store.read(other)[0]) for other in store.deployed(ctx.conf) if other.stem != script.name]
        together = between.findings([*others, (path, script)], command.containers(ctx, [script]))
        findings += [finding for finding in together if finding.file == path]
    for finding in findings:
        sys.stderr.write(f"{finding}\n")
    return None if any(finding.severity == "error" for finding in findings) else script


def _key(path: Path) -> Any:
    """The private key in a file; who has protected it is asked for the passphrase. Raises UsageError."""
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    octets = files.read(path, LIMIT)
    try:
        try:
            key = load_pem_private_key(octets, None)
        except TypeError:  # it has a passphrase
            import getpass

            key = load_pem_private_key(octets, getpass.getpass(f"Passphrase of {path}: ").encode())
    except (ValueError, EOFError):
        raise UsageError(f"{path}: not a private key in PEM, or the passphrase is wrong") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise UsageError(f"{path}: expected an EC or RSA key")
    return key
