# SPDX-License-Identifier: Apache-2.0
"""System containers: virtual machines of QEMU, run by libvirt as ordinary domains."""
