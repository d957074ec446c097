# SPDX-License-Identifier: Apache-2.0
"""The verbs of dre-rules for its page: person, who may what; serve, which does for the page what it may not do."""

import hashlib
import ssl
from dataclasses import asdict
from typing import Any

from dre import accounts, cli, files, units
from dre.errors import NotFoundError, UsageError

from monitorlib import people
from monitorlib.people import ROLES, People


def add(verbs: Any) -> None:
    """Add the verbs to those of dre-rules."""
    made = cli.verb(
        verbs, "person", _person, "Say who may change rules by the page, and as what; without NAME list them."
    )
    made.add_argument("name", metavar="NAME", nargs="?", type=units.name, help="as the person's login on this host")
    made.add_argument("--role", choices=tuple(ROLES), help="what this person may")
    made.add_argument(
        "--certificate", metavar="PEM", help="a client certificate that this person is known by; - for none"
    )
    what = made.add_mutually_exclusive_group()
    what.add_argument("--password", action="store_true", help="another password, asked for, or a line of stdin")
    what.add_argument("--generate", action="store_true", help="another password, made by chance and printed")
    what.add_argument("--revoke", action="store_true", help="take role and password away")
    made = cli.verb(verbs, "serve", _serve, "Answer the page, which asks at a socket, until SIGTERM.")
    made.add_argument("--detach", action="store_true", help="go on in the background once it is heard (python-daemon)")


def _serve(ctx: cli.Context) -> None:
    from monitorlib import deskserver, detach

    deskserver.serve(ctx.conf, (lambda: detach.detach(ctx.conf, "dre-rules")) if ctx.args.detach else None)


def _person(ctx: cli.Context) -> None:
    args = ctx.args
    with files.lock(ctx.conf.core_run_dir / "lock" / "rules-page"):
        known = People(people.prepare(ctx.conf))
        if args.name is None:
            if args.role or args.certificate or args.password or args.generate or args.revoke:
                raise UsageError("whose? expected a NAME")
            _list(ctx, known)
        elif args.revoke:
            if args.role or args.certificate:
                raise UsageError("--role and --certificate go with a NAME that gets them")
            known.revoke(ctx.conf, args.name)
            ctx.say(f"person {args.name}: revoked")
        else:
            _change(ctx, known)


def _list(ctx: cli.Context, known: People) -> None:
    with_password = set(known.names())
    for one in known.all():
        told = {**asdict(one), "password": one.name in with_password}
        if ctx.args.json:
            ctx.out.json({key: value for key, value in told.items() if key != "number"})
        else:
            how = ["password"] if told["password"] else []
            how += [f"certificate {one.certificate[:16]}"] if one.certificate else []
            ctx.out.line("\t".join((one.name, one.role, one.time, " ".join(how))))


def _change(ctx: cli.Context, known: People) -> None:
    """Role, certificate, password; open sessions end, because the registration is a new one."""
    args, person = ctx.args, known.find(ctx.args.name)
    if not (args.role or args.certificate or args.password or args.generate):
        raise UsageError("expected what is to be done: --role, --certificate, --password, --generate or --revoke")
    if person is None and args.role is None:
        raise NotFoundError(f"no person {args.name!r}; --role makes one")
    certificate = person.certificate if person else ""
    if args.certificate:
        certificate = "" if args.certificate == "-" else _fingerprint(args.certificate)
    wanted = args.password or args.generate or (args.name not in known.names() and not certificate)
    password = accounts.ask_password(args.name, args.generate) if wanted else None
    role = args.role or (person.role if person else "")
    known.register(ctx.conf, args.name, role, certificate)
    if password is not None:
        known.set_password(args.name, password)
    if args.generate and password is not None:
        ctx.out.json({"name": args.name, "password": password}) if ctx.out.as_json else ctx.out.line(password)
    ctx.say(f"person {args.name}: {role}")


def _fingerprint(file: str) -> str:
    """The SHA-256 of the certificate in a PEM file. Raises UsageError."""
    try:
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(files.read(file, 1 << 16).decode().strip())).hexdigest()
    except ValueError:
        raise UsageError(f"{file}: expected one certificate as PEM") from None
