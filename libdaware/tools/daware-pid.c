// SPDX-License-Identifier: Apache-2.0
/* The number of a process inside and outside of its container; see daware-pid(1). */
#include "tool.h"

#include <limits.h>

/* The number that *text* is; 0 where it is none. */
static pid_t number_of(const char *text)
{
	char *end;
	long number = strtol(text, &end, 10);

	return end != text && *end == '\0' && number > 0 && number <= INT_MAX ? (pid_t)number : 0;
}

int main(int argc, char *argv[])
{
	static const char usage[] = "daware-pid inside OUTER [REFERENCE] | daware-pid outside INNER REFERENCE";
	static const struct option options[] = {TOOL_OPTIONS};
	pid_t process, reference, found;
	int option, error, inside;

	while ((option = getopt_long(argc, argv, "+", options, NULL)) != -1)
		return tool_usual(option, usage);
	inside = optind < argc && strcmp(argv[optind], "inside") == 0;
	if (!inside && (optind >= argc || strcmp(argv[optind], "outside") != 0))
		return tool_wrong(usage, "expected inside or outside");
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
