// SPDX-License-Identifier: Apache-2.0
/*
 * The number of a process in another PID namespace: by /dev/daware of the module daware-mod, by the ioctl of Linux 6.11,
 * or else by the lines NSpid of /proc; the first that is there. A namespace is named by a process in it, and is the
 * caller's own or one below.
 */
#define _GNU_SOURCE
#include "private.h"

#include <daware_ioctl.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* <linux/nsfs.h> of Debian 12 has only the first; the others came with commit ca567df74a28. */
#define GET_PARENT _IO(0xb7, 0x2)
#define GET_TGID_FROM_PIDNS _IOR(0xb7, 0x7, int)
#define GET_TGID_IN_PIDNS _IOR(0xb7, 0x9, int)

enum { LEVELS = 33 }; /* of namespaces, as the kernel has them */

static int open_namespace(pid_t process)
{
	char path[64];
	int fd;

	snprintf(path, sizeof path, "/proc/%d/ns/pid", (int)process);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd >= 0 ? fd : errno == ENOENT ? -ESRCH : -errno;
}

/* The numbers of *process* from the caller's namespace inwards; how many, or a negative errno. */
static int numbers_of(pid_t process, pid_t numbers[LEVELS])
{
	char path[64], line[1024];
	int count = 0;
	FILE *file;

	snprintf(path, sizeof path, "/proc/%d/status", (int)process);
	file = fopen(path, "re");
	if (file == NULL)
		return errno == ENOENT ? -ESRCH : -errno;
	while (fgets(line, sizeof line, file) != NULL) {
		char *at = line, *next;

		if (strncmp(line, "NSpid:", 6) != 0)
			continue;
		for (at += 6; count < LEVELS; at = next) {
			long number = strtol(at, &next, 10);

			if (next == at)
				break;
			numbers[count++] = (pid_t)number;
		}
	}
	fclose(file);
	return count > 0 ? count : -ESRCH;
}

/* Whether *process*, which is *above* levels below *space*, is in it. */
static int is_within(pid_t process, const struct stat *space, int above)
{
	int fd = open_namespace(process);
	struct stat its;
	int same;

	for (; fd >= 0 && above > 0; above--) {
		int parent = ioctl(fd, GET_PARENT);

		close(fd);
		fd = parent;
	}
	same = fd >= 0 && fstat(fd, &its) == 0 && its.st_dev == space->st_dev && its.st_ino == space->st_ino;
	if (fd >= 0)
		close(fd);
	return same;
}

/* The number of *process* in *space*, which is that of a process with *level* numbers. */
static int number_in(pid_t process, const struct stat *space, int level)
{
	pid_t numbers[LEVELS];
	int count = numbers_of(process, numbers);

	if (count < 0)
		return count;
	return count >= level && is_within(process, space, count - level) ? numbers[level - 1] : -ESRCH;
}

static int search(pid_t inner, const struct stat *space, int level)
{
	DIR *all = opendir("/proc");
	struct dirent *entry;
	int found = -ESRCH;

	if (all == NULL)
		return -errno;
	while (found < 0 && (entry = readdir(all)) != NULL) {
		pid_t process = (pid_t)atoi(entry->d_name);

		if (process > 0 && number_in(process, space, level) == inner)
			found = process;
	}
	closedir(all);
	return found;
}

/* What the module says; -ENOTTY: it is not there, or not for this caller. */
static int ask_module(int inwards, int space, pid_t process)
{
	struct daware_pid asked = {.space = space, .pid = process};
	int number, device = open("/dev/daware", O_RDONLY | O_CLOEXEC | O_NONBLOCK);

	if (device < 0)
		return -ENOTTY;
	number = ioctl(device, inwards ? DAWARE_PID_INSIDE : DAWARE_PID_OUTSIDE, &asked) == 0 ? asked.found : -errno;
	close(device);
	return number;
}

static int ask_kernel(int inwards, int space, pid_t process)
{
	int number = ioctl(space, inwards ? GET_TGID_IN_PIDNS : GET_TGID_FROM_PIDNS, process);

	if (number < 0)
		return errno == EINVAL ? -ENOTTY : -errno; /* older than 6.11 */
	return number;
}

static int translate(int inwards, pid_t process, pid_t reference, pid_t *found)
{
	pid_t numbers[LEVELS];
	struct stat space;
	int fd, level, number = -ENOTTY;

	if (found == NULL || process < 1 || reference < 1)
		return -EINVAL;
	*found = 0;
	fd = open_namespace(reference);
	if (fd < 0)
		return fd;
#ifndef DAWARE_WITHOUT_MODULE
	number = ask_module(inwards, fd, process);
#endif
#ifndef DAWARE_WITHOUT_IOCTL
	if (number == -ENOTTY)
		number = ask_kernel(inwards, fd, process);
#endif
	if (number == -ENOTTY) {
		level = numbers_of(reference, numbers);
		if (level < 0 || fstat(fd, &space) != 0)
			number = level < 0 ? level : -errno;
		else
			number = inwards ? number_in(process, &space, level) : search(process, &space, level);
	}
	close(fd);
	if (number <= 0)
		return number == 0 ? -ESRCH : number;
	*found = number;
	return 0;
}

PUBLIC int daware_pid_outside(pid_t inner, pid_t reference, pid_t *outer)
{
	return translate(0, inner, reference, outer);
}

PUBLIC int daware_pid_inside(pid_t outer, pid_t reference, pid_t *inner)
{
	return translate(1, outer, reference, inner);
}

PUBLIC int daware_terminate(pid_t outer, int milliseconds, int *how)
{
	int fd, error = 0, ended;
	int64_t until = daware_now() + milliseconds;
	struct pollfd end = {.events = POLLIN};

	if (outer < 1 || milliseconds < 0)
		return -EINVAL;
	fd = (int)syscall(SYS_pidfd_open, outer, 0U);
	if (fd < 0)
		return -errno;
	end.fd = fd;
	if (syscall(SYS_pidfd_send_signal, fd, SIGTERM, NULL, 0U) != 0)
		error = -errno;
	do {
		int64_t left = until - daware_now();

		ended = poll(&end, 1, left > 0 ? (int)left : 0);
	} while (ended < 0 && errno == EINTR);
	if (how != NULL)
		*how = ended > 0 ? DAWARE_ENDED : DAWARE_KILLED;
	if (error == 0 && ended <= 0) {
		if (syscall(SYS_pidfd_send_signal, fd, SIGKILL, NULL, 0U) != 0)
			error = -errno;
		while (error == 0 && poll(&end, 1, -1) < 0 && errno == EINTR)
			;
	}
	close(fd);
	return error;
}
