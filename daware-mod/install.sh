#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds the kernel module daware by DKMS for KERNEL, default the running one, installs it there, and loads it if that
# kernel runs. The package has done so where it found the headers of a kernel: this is for when they came later.
#
# usage: install.sh [KERNEL]
set -eu
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
running=$(uname -r)
kernel=${1:-$running}

# fail STATUS WORD…
fail() {
	status=$1
	shift
	echo "install.sh: $*" >&2
	exit "$status"
}

case "$kernel" in
-* | */*) fail 2 "usage: install.sh [KERNEL], a name below /lib/modules" ;;
esac
[ "$(id -u)" -eq 0 ] || fail 4 "needs root"
command -v dkms >/dev/null || fail 6 "dkms is missing: apt-get install dkms"
[ -e "/lib/modules/$kernel/build" ] || fail 6 "the headers of $kernel are missing: apt-get install linux-headers-$kernel"

version=$(sed -n 's/^PACKAGE_VERSION="\(.*\)"/\1/p' /usr/src/daware-mod-*/dkms.conf)
dkms install -m daware-mod -v "$version" -k "$kernel"
[ "$kernel" = "$running" ] || exit 0
if grep -q '^daware ' /proc/modules && ! modprobe -r daware; then
	fail 1 "an older one is in use: it stays until its users have ended"
fi
modprobe daware || fail 1 "built, but not loaded; does Secure Boot want its key enrolled? see daware(4)"
