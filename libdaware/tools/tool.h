/* SPDX-License-Identifier: Apache-2.0 */
/* What the daware commands have in common: usage, exit statuses as in dre(7), and how a failure is said. */
#ifndef DAWARE_TOOL_H
#define DAWARE_TOOL_H

#define _GNU_SOURCE
#include <daware.h>
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TOOL_OPTIONS {"help", no_argument, NULL, 'h'}, {"version", no_argument, NULL, 'V'}, {NULL, 0, NULL, 0}

enum { DONE, FAILED, USAGE, ABSENT, DENIED, TIMED_OUT, MISSING };

static inline int tool_wrong(const char *usage, const char *what)
{
	fprintf(stderr, "%s: %s\nusage: %s\n", program_invocation_short_name, what, usage);
	return USAGE;
}

/* The options that all have; an unknown one was told by getopt. */
static inline int tool_usual(int option, const char *usage)
{
	if (option == 'h')
		printf("usage: %s\n\nSee the manual page %s(1).\n", usage, program_invocation_short_name);
	else if (option == 'V')
		printf("%s (D-RE) %s\n", program_invocation_short_name, daware_version());
	else
		fprintf(stderr, "usage: %s\n", usage);
	return option == 'h' || option == 'V' ? DONE : USAGE;
}

/* The exit status for *error*, which is said with what it means. */
static inline int tool_ended(const char *what, int error)
{
	if (error == 0)
		return DONE;
	fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what, strerror(-error));
	return error == -ESRCH ? ABSENT : error == -EPERM || error == -EACCES ? DENIED : error == -EINVAL ? USAGE : FAILED;
}

#endif
