// SPDX-License-Identifier: Apache-2.0
/* The number of a process inside and outside of its container; see daware-pid(1). */
#include "tool.h"

#include <limits.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* The number that *text* is; 0 where it is none. */
static pid_t number_of(const char *text)
{
	char *end;
	long number = strtol(text, &end, 10);

	return end != text && *end == '\0' && number > 0 && number <= INT_MAX ? (pid_t)number : 0;
}

/* A socket at *path* that everybody may send to, in place of one that nobody listens at; or a negative errno. */
static int open_socket(const char *path)
{
	struct sockaddr_un place = {.sun_family = AF_UNIX};
	int fd, error = 0, yes = 1;

	if (strlen(path) >= sizeof place.sun_path)
		return -ENAMETOOLONG;
	strcpy(place.sun_path, path);
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (connect(fd, (struct sockaddr *)&place, sizeof place) != 0 && errno == ECONNREFUSED)
		unlink(path);
	close(fd);
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	umask(0111);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &yes, sizeof yes) != 0 ||
		bind(fd, (struct sockaddr *)&place, sizeof place) != 0)
		error = -errno;
	if (error != 0 && fd >= 0)
		close(fd);
	return error != 0 ? error : fd;
}

/* Print what programs say at *fd* of themselves: outer and user as the kernel has them, inner and name as they say. */
static int listen_at(int fd)
{
	for (;;) {
		union {
			struct cmsghdr head;
			char room[CMSG_SPACE(sizeof(struct ucred))];
		} control;
		char text[256], name[65];
		struct iovec octets = {text, sizeof text - 1};
		struct msghdr message = {
			.msg_iov = &octets, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
		ssize_t length = recvmsg(fd, &message, 0);
		struct cmsghdr *head = CMSG_FIRSTHDR(&message);
		struct ucred sender;
		int inner;

		if (length < 0 && errno != EINTR)
			return -errno;
		if (length < 0 || head == NULL || head->cmsg_type != SCM_CREDENTIALS)
			continue;
		memcpy(&sender, CMSG_DATA(head), sizeof sender);
		text[length] = '\0';
		/* 0: it is not in a namespace of ours. */
		if (sender.pid == 0 || sscanf(text, "PID=%d\nIDENT=%64[!-~]", &inner, name) != 2)
			continue;
		printf("%d %d %u %s\n", (int)sender.pid, inner, (unsigned)sender.uid, name);
		if (fflush(stdout) != 0)
			return -errno;
	}
}

int main(int argc, char *argv[])
{
	static const char usage[] =
		"daware-pid inside OUTER [REFERENCE] | daware-pid outside INNER REFERENCE | daware-pid listen SOCKET";
	static const struct option options[] = {TOOL_OPTIONS};
	pid_t process, reference, found;
	int option, error, inside;

	while ((option = getopt_long(argc, argv, "+", options, NULL)) != -1)
		return tool_usual(option, usage);
	if (argc - optind == 2 && strcmp(argv[optind], "listen") == 0) {
		found = open_socket(argv[optind + 1]);
		return tool_ended(argv[optind + 1], found < 0 ? found : listen_at(found));
	}
	inside = optind < argc && strcmp(argv[optind], "inside") == 0;
	if (!inside && (optind >= argc || strcmp(argv[optind], "outside") != 0))
		return tool_wrong(usage, "expected inside, outside or listen");
	if (argc - optind > 3 || argc - optind < (inside ? 2 : 3))
		return tool_wrong(usage, "expected the number of a process, and that of one that is in the container");
	process = number_of(argv[optind + 1]);
	reference = argc - optind == 3 ? number_of(argv[optind + 2]) : process;
	if (process == 0 || reference == 0)
		return tool_wrong(usage, "a process is a number above 0");
	error = inside ? daware_pid_inside(process, reference, &found) : daware_pid_outside(process, reference, &found);
	if (error == 0)
		printf("%d\n", (int)found);
	return tool_ended(argv[optind + 1], error);
}
