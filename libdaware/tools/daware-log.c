// SPDX-License-Identifier: Apache-2.0
/* One record to the log; see daware-log(1). */
#include "tool.h"

#include <string.h>

int main(int argc, char *argv[])
{
	static const char usage[] = "daware-log [--priority P] [--ident NAME] EVENT MESSAGE [KEY=VALUE]...";
	static const char *const names[] = {"emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"};
	static const struct option options[] = {
		{"priority", required_argument, NULL, 'p'}, {"ident", required_argument, NULL, 't'}, TOOL_OPTIONS};
	const char *ident = "daware-log", *pairs[2 * 256 + 1];
	int option, priority = LOG_NOTICE, error, count = 0;

	while ((option = getopt_long(argc, argv, "+p:t:", options, NULL)) != -1) {
		if (option == 'p') {
			for (priority = 0; priority < 8 && strcmp(optarg, names[priority]) != 0; priority++)
				;
			if (priority == 8)
				return tool_wrong(usage, "--priority is emerg, alert, crit, err, warning, notice, info or debug");
		} else if (option == 't') {
			ident = optarg;
		} else {
			return tool_usual(option, usage);
		}
	}
	if (argc - optind < 2 || argc - optind > 2 + 256)
		return tool_wrong(usage, "expected an event, a message, and at most 256 pairs");
	for (int at = optind + 2; at < argc; at++) {
		char *equal = strchr(argv[at], '=');

		if (equal == NULL || equal == argv[at])
			return tool_wrong(usage, "a pair is KEY=VALUE");
		*equal = '\0';
		pairs[count++] = argv[at];
		pairs[count++] = equal + 1;
	}
	pairs[count] = NULL;
	setenv("DAWARE_ANNOUNCE", "", 1); /* a record is no program that begins */
	error = daware_open(ident, DAWARE_LOOP);
	if (error == 0)
		error = daware_log_pairs(priority, argv[optind], argv[optind + 1], pairs);
	return tool_ended("the log takes nothing", error);
}
