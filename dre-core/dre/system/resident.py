# SPDX-License-Identifier: Apache-2.0
"""What waits in a guest that is saved for warm starts, and makes of the one that goes on a machine of its own.

Under an emulator a guest that was just restored needs a tenth of a second and more to start a program, for nothing of
it is translated yet. So one program is there already, in Perl, which every Debian has: it reads what is the new
machine's from a FIFO and does almost all with its own system calls. The agent writes there and reads what became of it,
without starting anything either.
"""

import contextlib
import time
from collections.abc import Mapping

from dre.errors import DreError, TimedOutError
from dre.system import hypervisor
from dre.system.agent import Agent

_PROGRAM, _FIFO, _DONE = "/run/dre-resident", "/run/dre-awake", "/run/dre-awake.done"
_LONGEST = 4096  # octets of what it says
# Numbers: settimeofday(2) of x86-64, the only kind of guest there is; RNDRESEEDCRNG of random(4), else what was written
# counts only some minutes later; SIOCSIFHWADDR, SIOCGIFFLAGS and SIOCSIFFLAGS of netdevice(7).
PROGRAM = r"""
use strict;
use warnings;
use POSIX ();
use Socket;
my ($fifo, $done) = @ARGV;

sub put {
    my ($path, $text, $mode) = @_;
    open my $out, '>', $path or die "$path: $!\n";
    chmod $mode, $out if defined $mode;
    print $out $text;
    close $out or die "$path: $!\n";
}

sub asked {    # whole, or not at all: who began to write may have been killed
    my ($in) = @_;
    my ($begun, %found);
    while (my $line = <$in>) {
        ($begun, %found) = (1) if $line eq "begin\n";
        return %found if $begun and $line eq "end\n";
        $found{$1} = pack 'H*', $2 if $line =~ /^(\w+) ([0-9a-f]*)\n$/;
    }
}

sub become {
    my %own = @_;
    syscall(164, pack('qq', split(/\./, $own{NOW})), 0) == 0 or die "settimeofday: $!\n";
    open my $random, '+>', '/dev/urandom' or die "urandom: $!\n";
    syswrite $random, $own{SEED} or die "urandom: $!\n";
    ioctl $random, 0x5207, 0 or die "RNDRESEEDCRNG: $!\n";
    my $journal = "/var/log/journal/$own{FORMER}";
    put('/etc/machine-id', "$own{MACHINE}\n");
    rename $journal, "/var/log/journal/$own{MACHINE}" if -d $journal;
    put('/etc/hostname', "$own{NAME}\n");
    put('/proc/sys/kernel/hostname', $own{NAME});
    mkdir '/root/.ssh', 0700;
    put('/root/.ssh/authorized_keys', $own{KEYS}, 0600);
    my $network = '/etc/systemd/network/50-dre.network';
    unlink $network;
    put($network, $own{NETWORK}) if $own{NETWORK};
    socket my $any, AF_INET, SOCK_DGRAM, 0 or die "socket: $!\n";
    my $request = pack 'a16 S a14', 'eth0', 1, pack 'H2' x 6, split /:/, $own{MAC};
    ioctl $any, 0x8924, $request or die "eth0: $!\n";
    system('networkctl', 'reload') == 0 or die "networkctl reload: $?\n" if $own{NETWORK};
    my $flags = pack 'a16 S a14', 'eth0', 0, '';
    ioctl $any, 0x8913, $flags or die "eth0: $!\n";
    my (undef, $now) = unpack 'a16 S', $flags;
    $flags = pack 'a16 S a14', 'eth0', $now | 1, '';
    ioctl $any, 0x8914, $flags or die "eth0: $!\n";
    system('systemctl', '--no-block', 'restart', 'systemd-journald', 'dre-ssh-keys', 'ssh') == 0
        or die "systemctl restart: $?\n";
}

open my $in, '+<', $fifo or die "$fifo: $!\n";    # both ends: it is never at its end
if (my $child = fork) { exit }    # it waits: whoever began it may go on
POSIX::setsid();
open $_, '+<', '/dev/null' for *STDIN, *STDOUT, *STDERR;
my %own = asked($in);
open my $id, '<', '/run/dre-machine-id' or die "machine-id: $!\n";
chomp($own{FORMER} = <$id>);
my $said = eval { become(%own); 1 } ? 'ok' : "failed: $@";
put("$done.new", $said, 0600);
rename "$done.new", $done;
unlink $fifo, $0, '/run/dre-machine-id';
"""
# Nobody else may write to the FIFO: /run is root's, and the mode says so.
_BEGIN = f"""
set -e
rm -f {_DONE}
mkfifo -m 600 {_FIFO}
perl {_PROGRAM} {_FIFO} {_DONE}
"""


def begin(agent: Agent) -> None:
    """Leave it waiting in the guest. Raises DreError and its children."""
    agent.write(iter([PROGRAM.encode()]), _PROGRAM)
    ended = agent.run(["/bin/sh", "-c", _BEGIN], timeout=60)
    if ended.status != 0:
        raise DreError(f"{agent.name}: nothing waits there: {ended.stderr.decode(errors='replace').strip()[-200:]}")


def wake(agent: Agent, own: Mapping[str, str], timeout: float) -> None:
    """Have it take what is the machine's *own* and end; what an earlier call has had done is not done again.

    Raises TimedOutError after *timeout* seconds, DreError when it could not.
    """
    begun = time.monotonic()
    said = _said(agent)
    if said is None:
        lines = "".join(f"{key} {value.encode().hex()}\n" for key, value in own.items())
        agent.write(iter([f"\nbegin\n{lines}end\n".encode()]), _FIFO, "r+")  # which makes none where there is none
        while (said := _said(agent)) is None:
            passed = time.monotonic() - begun
            if passed > timeout:
                raise TimedOutError(f"{agent.name}: the guest did not take its own identity within {timeout:g} s")
            time.sleep(min(0.5, 0.01 + passed / 10))  # each question costs the guest some time
    if said != "ok":
        raise DreError(f"{agent.name}: the guest did not take its own identity: {hypervisor.plain(said)}")


def _said(agent: Agent) -> str | None:
    """What became of it; None as long as it has not ended."""
    with contextlib.suppress(DreError):
        octets = b""
        for piece in agent.read(_DONE):
            octets += piece
            if len(octets) > _LONGEST:
                break
        return octets[:_LONGEST].decode(errors="replace").strip()
    return None
