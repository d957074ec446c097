# SPDX-License-Identifier: Apache-2.0
"""The rules: what is in force, drafts, proposals, and what was in force before; asked of dre-rules serve."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flask import Blueprint, abort, redirect, render_template, request
from werkzeug.wrappers import Response

from monitorlib.page.ask import ask

views = Blueprint("rules", __name__)
LINES = 2000  # of both files together that are compared
Row = tuple[str, str, str, str]  # kind, old number, new number, text
BEGIN = """# SPDX-License-Identifier: Apache-2.0
type=Single
ptype=RegExp
pattern="type":"shop\\.release"
desc=release
action=write %script {"what":"release"}
"""


@dataclass(frozen=True)
class Compared:
    """A file beside its version before; *sign* is + (new), ~ (changed) or - (removed); too long ones have no rows."""

    name: str
    sign: str
    rows: list[Row]
    text: str


@views.get("/rules")
def overview() -> str:
    """What is in force, what waits, and what happened last."""
    return render_template("overview.html", told=ask("overview"))


@views.get("/rules/files/<name>")
def file(name: str) -> str:
    """One file in force."""
    told = ask("rules")
    if name not in told["texts"]:
        abort(404, f"{name}: no such file is in force")
    return render_template("file.html", name=name, text=told["texts"][name])


@views.get("/rules/edit")
def edit() -> str:
    """A draft of the files that are named, or of a new one."""
    told, names = ask("rules"), request.args.getlist("file")[:64]
    files = [(name, told["texts"][name]) for name in names if name in told["texts"]] or [("new.sec", BEGIN)]
    return _draft(files, told["version"], [], "")


@views.post("/rules/edit")
def try_draft() -> str | Response | tuple[str, int]:
    """Check, try or propose the draft; it comes back in the form where it is not proposed."""
    form = request.form
    texts = dict(zip(form.getlist("name")[:64], map(_unix, form.getlist("text")[:64]), strict=False))
    for sent in request.files.getlist("file"):
        if sent.filename:
            name = sent.filename.replace("\\", "/").rpartition("/")[2][:100]
            texts[name] = sent.read().decode("utf-8", "backslashreplace")
    gone = [name for name in form.getlist("remove")[:64] if name in texts]
    asked: dict[str, Any] = {
        "texts": {name: text for name, text in texts.items() if name not in gone},
        "remove": gone,
        "base": form.get("base", "")[:64],
    }
    do, note, more = form.get("do", "check"), form.get("note", "")[:500], dict[str, Any]()
    if do == "propose":
        more = {"note": note}
    elif do == "test":
        events = request.files.get("events")
        more = {"events": events.read().decode("utf-8", "replace") if events and events.filename else ""}
    else:
        do = "check"
    told = ask(do, **asked, **more)
    if do == "propose" and "error" not in told:
        return redirect(f"/rules/proposals/{told['id']}", 303)
    page = _draft(list(texts.items()), asked["base"], gone, note, {**told, "did": do})
    return page, 422 if "error" in told else 200


def _draft(
    files: list[tuple[str, str]],
    base: str,
    gone: list[str],
    note: str,
    told: dict[str, Any] | None = None,
) -> str:
    return render_template("edit.html", files=files, base=base, gone=gone, note=note, told=told or {})


@views.get("/rules/proposals/<identity>")
def proposal(identity: str) -> str:
    """One proposal, beside what is in force."""
    return _proposal(identity, {})


@views.post("/rules/proposals/<identity>")
def decide(identity: str) -> str | Response | tuple[str, int]:
    """Try, approve or reject it."""
    do = request.form.get("do", "")
    if do not in ("test", "approve", "reject"):
        abort(400, "approve, reject or test?")
    told = ask(do, id=identity[:40])
    if do == "test" or "error" in told:
        return _proposal(identity, {**told, "did": do}), 422 if "error" in told else 200
    return redirect("/rules", 303)


def _proposal(identity: str, outcome: dict[str, Any]) -> str:
    told = ask("proposal", id=identity[:40])
    return render_template(
        "proposal.html", made=told["proposal"], files=compare(told["before"], told["texts"]), told={**told, **outcome}
    )


@views.get("/rules/history")
def history() -> str:
    """All switches."""
    return render_template("history.html", history=ask("history")["history"])


@views.get("/rules/history/<int:number>")
def switch(number: int) -> str:
    """One switch: what it changed."""
    told = ask("switch", number=number)
    return render_template("switch.html", made=told["switch"], files=compare(told["before"], told["texts"]), told=told)


@views.post("/rules/history/<int:number>")
def rollback(number: int) -> str | Response | tuple[str, int]:
    """Put those rules in force again."""
    told = ask("rollback", number=number, note=request.form.get("note", "")[:500])
    if "error" not in told:
        return redirect("/rules", 303)
    shown = ask("switch", number=number)
    files = compare(shown["before"], shown["texts"])
    return render_template("switch.html", made=shown["switch"], files=files, told={**shown, **told}), 422


def compare(old: Mapping[str, str], new: Mapping[str, str]) -> list[Compared]:
    """The files that differ."""
    found = []
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if before != after:
            sign = "+" if before is None else "-" if after is None else "~"
            found.append(Compared(name, sign, _rows(before or "", after or ""), (after or before or "")[:65536]))
    return found


def _rows(old: str, new: str) -> list[Row]:
    before, after = old.splitlines(), new.splitlines()
    if len(before) + len(after) > LINES or len(old) + len(new) > 1 << 18:
        return []
    rows, left, right = list[Row](), 0, 0
    for line in list(difflib.unified_diff(before, after, n=3, lineterm=""))[2:]:
        sign, text = line[:1], line[1:]
        if sign == "@":
            left, right = (int(word[1:].partition(",")[0]) for word in line.split()[1:3])
            rows.append(("gap", "", "", line))
            continue
        kind = {"+": "new", "-": "old"}.get(sign, "same")
        rows.append((kind, str(left) if kind != "new" else "", str(right) if kind != "old" else "", text))
        left, right = left + (kind != "new"), right + (kind != "old")
    return rows


def _unix(text: str) -> str:
    """A text as it was before a browser gave its lines the ends that forms have."""
    return text.replace("\r\n", "\n")
