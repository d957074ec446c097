/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * What /dev/daware is asked; see daware(4). A PID namespace is named by a descriptor of /proc/PID/ns/pid, so that who
 * may not open that is told nothing of it. It is the caller's own or one below.
 */
#ifndef DAWARE_IOCTL_H
#define DAWARE_IOCTL_H

#include <linux/ioctl.h>
#include <linux/types.h>

struct daware_pid {
	__s32 space; /* the descriptor */
	__s32 pid;   /* in: a process */
	__s32 found; /* out: the number it has on the other side */
};

/* Process *pid* of the caller's namespace: its number in *space*. */
#define DAWARE_PID_INSIDE _IOWR(0xda, 1, struct daware_pid)
/* Process *pid* of *space*: its number in the caller's namespace. */
#define DAWARE_PID_OUTSIDE _IOWR(0xda, 2, struct daware_pid)

#endif
