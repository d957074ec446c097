// SPDX-License-Identifier: Apache-2.0
/* What a service manager wants to know; see daware-notify(1). */
#include "tool.h"

int main(int argc, char *argv[])
{
	static const char usage[] = "daware-notify ready | status TEXT | heartbeat";
	static const struct option options[] = {TOOL_OPTIONS};
	const char *what;
	int option;

	while ((option = getopt_long(argc, argv, "+", options, NULL)) != -1)
		return tool_usual(option, usage);
	what = optind < argc ? argv[optind] : "";
	if (strcmp(what, "ready") == 0 && argc == optind + 1)
		return tool_ended("the service manager is not told", daware_ready());
	if (strcmp(what, "heartbeat") == 0 && argc == optind + 1)
		return tool_ended("the service manager is not told", daware_heartbeat());
	if (strcmp(what, "status") == 0 && argc == optind + 2)
		return tool_ended("the service manager is not told", daware_status("%s", argv[optind + 1]));
	return tool_wrong(usage, "expected ready, status with a text, or heartbeat");
}
