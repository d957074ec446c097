# SPDX-License-Identifier: Apache-2.0
"""dre-sys create and destroy: systems come and go."""

import re
from pathlib import Path
from typing import Any

from dre import event, images, sshd, units, verbs
from dre.cli import Context
from dre.cmd.sys.running import STOP_WAIT, each_held
from dre.errors import DreError, NotFoundError, UsageError
from dre.images import Image
from dre.system import building, domain, lifecycle, limits, order, recovery, spec, virt
from dre.system.building import Wanted
from dre.system.model import RUNNING, System
from dre.system.spec import Spec

LEAST_MEMORY = 32 << 20  # bytes; no kernel of a distribution starts in less


def add(table: Any) -> None:
    """Add these verbs to *table*."""
    create = verbs.changing(table, "create", _create, "make a system, stopped")
    verbs.add_name(create)
    text = "what its disk begins as: one of dre-base, or a file (default: DRE_SYS_DEFAULT_BASE)"
    create.add_argument("--base", metavar="IMAGE", help=text)
    create.add_argument("--vcpus", type=verbs.count, default=1, metavar="N", help="virtual processors (default: 1)")
    text = "memory (default: DRE_SYS_DEFAULT_MEMORY)"
    create.add_argument("--memory", type=verbs.kind(memory), metavar="SIZE", help=text)
    create.add_argument("--cpu", type=verbs.kind(units.percent), metavar="PCT", help="percent of one core")
    create.add_argument("--mac", type=verbs.kind(_mac), metavar="MAC", help="hardware address of its first link")
    text = "a second disk: a new one of SIZE, or FILE, which stays yours"
    create.add_argument("--disk", action="append", default=[], metavar="SIZE|FILE", help=text)
    create.add_argument("--nic", action="append", default=[], metavar="BRIDGE", help="one more link, to BRIDGE")
    create.add_argument("--iso", metavar="FILE", help="a CD to boot from, with a screen by VNC on this host")
    create.add_argument("--uefi", action="store_true", help="boot by UEFI firmware")
    create.add_argument("--cloud-init", action="store_true", help="tell a cloud image who it is by a NoCloud seed")
    text = "a processor of the host for each of its own, and for nothing else of it"
    create.add_argument("--dedicated-cpus", action="store_true", help=text)
    text = "go on, at its first start, from a guest of the image that was booted once"
    create.add_argument("--warm", action="store_true", help=text)
    spec.add_options(create)
    destroy = verbs.changing(table, "destroy", _destroy, "remove stopped systems and their saved states")
    destroy.add_argument("--force", action="store_true", help="stop them first")
    verbs.add_names(destroy)


def memory(text: str) -> int:
    """A size of memory. Raises UsageError for less than any kernel starts in, and more than this host has."""
    size = units.size(text)
    if size < LEAST_MEMORY:
        raise UsageError(f"{text!r}: a system needs {LEAST_MEMORY >> 20}M at least")
    most = _host_memory()
    if size > most:
        raise UsageError(f"{text!r}: more than the {most} bytes of memory of this host")
    return size


def _host_memory() -> int:
    line = Path("/proc/meminfo").read_text().partition("\n")[0]
    return int(line.split()[1]) * 1024


def _mac(text: str) -> str:
    lower = text.lower()
    if not re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", lower) or int(lower[:2], 16) & 1:
        raise UsageError(f"{text!r} is not the hardware address of one host, such as 52:54:00:12:34:56")
    return lower


def _create(ctx: Context) -> None:
    args = ctx.args
    given = spec.from_options(args)
    with recovery.held(ctx.conf, args.name) as system:
        kept = system.spec()
        if args.again and kept is not None and kept.request == args.request_id and system.find() is not None:
            return  # done by the call that was killed before it could say so
        building.need_free(system)  # before what is wanted is looked at: all of it may be right but for the name
        image = _image(ctx)
        wanted = _wanted(ctx, image)
        wanted.virt, why = virt.choose(ctx.conf, image.kernel if image else None)
        wanted.dedicated, wanted.say = args.dedicated_cpus, ctx.say
        if args.warm:
            wanted.warm = _warmed(ctx, image, wanted)
        fields: dict[str, Any] = {"ssh_keys": _default_keys(ctx), **given}
        fields.pop("ip", None)  # given to create apart, for it is chosen under a lock
        made = Spec(
            name=system.name,
            base=image.name if image else "none",
            created=event.stamp(),
            mac=args.mac or "",
            request=args.request_id,
            cloud=args.cloud_init,
            warm=wanted.warm,
            **fields,
        )
        building.create(system, order.check(system, made), args.ip, wanted)
        if args.cpu is not None:
            _limit(system, args.cpu)
        if wanted.virt != "kvm":
            ctx.say(f"{system.name}: runs under QEMU's emulator (TCG), which is slow: {why}")


def _limit(system: System, percent: float) -> None:
    try:
        limits.change(system, {"cpu": percent})
    except DreError:
        lifecycle.destroy(system)
        raise


def _image(ctx: Context) -> Image | None:
    args = ctx.args
    if args.base is None and args.iso is not None:
        if args.disk_size is None:
            raise UsageError("--iso without --base: the size of its disk is missing: --disk-size")
        return None
    return images.find(ctx.conf, args.base or ctx.conf.sys_default_base)


def _wanted(ctx: Context, image: Image | None) -> Wanted:
    """What the options say; what runs it is chosen later, for that may take a trial."""
    args = ctx.args
    iso = Path(args.iso).absolute() if args.iso else None
    if iso is not None and not iso.is_file():
        raise NotFoundError(f"--iso {args.iso}: no such file")
    for name in args.nic:
        if not Path("/sys/class/net", name, "bridge").is_dir():
            raise NotFoundError(f"--nic {name}: no such bridge on this host")
    if len(args.disk) > len(domain.DISKS) - 2:
        raise UsageError(f"--disk: at most {len(domain.DISKS) - 2} second disks")
    for word in args.disk:
        if "/" in word:
            images.inspect(Path(word))
        else:
            spec.disk_size(word)
    return Wanted(
        image,
        "",
        args.memory or ctx.conf.sys_default_memory,
        args.vcpus,
        spec.disk_size(args.disk_size) if args.disk_size else None,
        tuple(args.disk),
        tuple(args.nic),
        iso,
        args.uefi,
    )


def _warmed(ctx: Context, image: Image | None, wanted: Wanted) -> str:
    args = ctx.args
    other = [word for word in ("disk", "nic", "iso", "uefi", "cloud_init", "disk_size") if getattr(args, word)]
    if image is None or other or args.ip == "none":
        what = f"--{other[0].replace('_', '-')}" if other else "--ip none" if args.ip == "none" else "no image"
        raise UsageError(f"--warm: not with {what}: it goes on from a guest that had none")
    from dre.system import warm

    def progress(text: str) -> None:
        ctx.progress(f"{args.name}: its image {text}")

    try:
        return warm.make(ctx.conf, image, wanted.virt, wanted.memory, wanted.vcpus, progress)
    finally:
        ctx.progress("")


def _default_keys(ctx: Context) -> tuple[str, ...]:
    return () if ctx.args.ssh_key else sshd.keys_of_root()


def _destroy_unknown(ctx: Context, system: System) -> None:
    """What is left of a system that virsh undefined; it may also be one of another host that shares our directory."""
    if not (system.home / "system.json").exists():
        if ctx.args.again:
            return
        raise NotFoundError(f"{system.name}: no such system")
    if not ctx.args.force:
        text = "this libvirt does not know it; with --force its disks are removed"
        raise DreError(f"{system.name}: {text}: {system.home}")
    building.need_unused(system)
    system.begin(verb="destroy")
    lifecycle.remove(system)
    system.emit("destroyed")


def _destroy(ctx: Context) -> None:
    def work(system: System) -> None:
        if system.find() is None:
            _destroy_unknown(ctx, system)
            return
        if not ctx.args.force and system.state() in RUNNING:
            raise DreError(f"{system.name}: is running; stop it, or use --force")
        others = (
            [] if ctx.args.force else [name for name in order.dependents(ctx.conf, system.name) if name not in named]
        )
        if others:
            raise DreError(f"{system.name}: {', '.join(others)} is after it; change that, or use --force")
        lifecycle.stop(system, 0.0 if ctx.args.force else STOP_WAIT)
        for path in lifecycle.destroy(system):
            ctx.say(f"{system.name}: {path} stays; it is not ours")

    named = ctx.args.names
    each_held(ctx, work, doomed=True)
