// SPDX-License-Identifier: Apache-2.0
/* The protocol of sd_notify(3): one datagram to $NOTIFY_SOCKET, and to $DAWARE_NOTIFY, where `dre-app stop` hears it. */
#define _GNU_SOURCE
#include "private.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int send_to(const char *path, const char *text)
{
	struct sockaddr_un manager = {.sun_family = AF_UNIX};
	socklen_t length;
	int fd, error = 0;

	if (path == NULL || path[0] == '\0')
		return 0;
	if ((path[0] != '/' && path[0] != '@') || strlen(path) >= sizeof manager.sun_path)
		return -EINVAL;
	memcpy(manager.sun_path, path, strlen(path));
	if (path[0] == '@') /* a name of the kernel's, without a file */
		manager.sun_path[0] = '\0';
	length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path));
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (sendto(fd, text, strlen(text), MSG_NOSIGNAL | MSG_DONTWAIT, (struct sockaddr *)&manager, length) < 0)
		error = -errno;
	close(fd);
	return error;
}

int daware_notify(const char *text)
{
	send_to(secure_getenv("DAWARE_NOTIFY"), text); /* `dre-app stop`: mostly nobody hears it */
	return send_to(secure_getenv("NOTIFY_SOCKET"), text);
}

void daware_announce(const char *ident)
{
	const char *path = secure_getenv("DAWARE_ANNOUNCE");
	char text[128];
	int length = snprintf(text, sizeof text, "PID=%d\nIDENT=%.64s\n", (int)getpid(), ident);

	for (char *at = strchr(text, '=') + 1; at < text + length - 1; at++) /* a name has no blanks */
		if ((*at < '!' || *at > '~') && *at != '\n')
			*at = '_';
	send_to(path != NULL ? path : "/run/dre/daware.sock", text); /* mostly nobody hears it */
}

PUBLIC int daware_ready(void)
{
	return daware_notify("READY=1");
}

PUBLIC int daware_heartbeat(void)
{
	return daware_notify("WATCHDOG=1");
}

PUBLIC int daware_status(const char *format, ...)
{
	char text[1024] = "STATUS=";
	va_list words;

	va_start(words, format);
	vsnprintf(text + 7, sizeof text - 7, format, words);
	va_end(words);
	for (char *at = text; *at != '\0'; at++) /* a line is a variable */
		if (*at == '\n')
			*at = ' ';
	return daware_notify(text);
}
