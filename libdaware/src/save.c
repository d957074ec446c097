// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "private.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int write_all(int fd, const char *octets, size_t length)
{
	while (length > 0) {
		ssize_t done = write(fd, octets, length);

		if (done < 0 && errno != EINTR)
			return -errno;
		octets += done > 0 ? done : 0;
		length -= done > 0 ? (size_t)done : 0;
	}
	return 0;
}

PUBLIC int daware_save_file(const char *path, const void *octets, size_t length)
{
	char directory[PATH_MAX], name[NAME_MAX + 1];
	const char *base = path != NULL ? strrchr(path, '/') : NULL;
	struct stat old;
	int place, fd, error;

	if (path == NULL || (octets == NULL && length > 0))
		return -EINVAL;
	base = base != NULL ? base + 1 : path;
	if (snprintf(directory, sizeof directory, "%.*s", (int)(base - path), path) >= (int)sizeof directory ||
	    snprintf(name, sizeof name, ".%.200s.%d.XXXXXX", base, (int)getpid()) >= (int)sizeof name)
		return -ENAMETOOLONG;
	place = open(directory[0] != '\0' ? directory : ".", O_DIRECTORY | O_CLOEXEC);
	if (place < 0)
		return -errno;
	for (unsigned tries = 0;; tries++) { /* threads and what was left by a crash */
		snprintf(strrchr(name, '.'), 8, ".%06x", (unsigned)(daware_now() + tries) & 0xffffff);
		fd = openat(place, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
		if (fd >= 0 || errno != EEXIST || tries == 1000)
			break;
	}
	error = fd < 0 ? -errno : 0;
	if (error == 0) {
		if (fstatat(place, base, &old, 0) == 0 && fchmod(fd, old.st_mode & 07777) != 0)
			error = -errno;
		if (error == 0)
			error = write_all(fd, octets, length);
		if (error == 0 && fsync(fd) != 0)
			error = -errno;
		if (close(fd) != 0 && error == 0)
			error = -errno;
		if (error == 0 && renameat(place, name, place, base) != 0)
			error = -errno;
		if (error != 0)
			unlinkat(place, name, 0);
		else if (fsync(place) != 0)
			error = -errno;
	}
	close(place);
	return error;
}
