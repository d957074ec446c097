// SPDX-License-Identifier: Apache-2.0
/* A program that is D-aware without knowing it; see daware-run(1). */
#include "tool.h"

#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static struct {
	const char *command; /* what saves; NULL: nothing does */
	pid_t program;
	int status; /* how the program ended, as wait(2) has it; -1: it has not */
	int ends;   /* whether it is to end */
} run = {.status = -1};

/* Wait for a program of ours, and for whatever else became our child. */
static void reap(int number, pid_t from, void *argument)
{
	pid_t child;
	int status;

	(void)number;
	(void)from;
	(void)argument;
	while ((child = waitpid(-1, &status, WNOHANG)) > 0)
		if (child == run.program)
			run.status = status;
}

static pid_t begin(char *const argv[])
{
	pid_t child = fork();

	if (child == 0) {
		execvp(argv[0], argv);
		fprintf(stderr, "daware-run: %s: %s\n", argv[0], strerror(errno));
		_exit(errno == ENOENT ? 127 : 126);
	}
	return child;
}

/* Wait up to *left* milliseconds for *child*; its end as wait(2) has it, -1 where it has been killed. */
static int wait_for(pid_t child, int left)
{
	int how, status = -1;

	/* SIGCHLD's call is not made before this returns: nobody else waits for it. */
	for (; left > 0 && waitpid(child, &status, WNOHANG) == 0; left -= 10)
		poll(NULL, 0, 10);
	if (left > 0)
		return status;
	daware_terminate(child, 0, &how);
	waitpid(child, NULL, 0);
	return -1;
}

static int save(int number, int left, void *argument)
{
	char milliseconds[16];
	char *argv[] = {"/bin/sh", "-c", (char *)run.command, NULL};
	pid_t child;
	int status;

	(void)number;
	(void)argument;
	snprintf(milliseconds, sizeof milliseconds, "%d", left);
	setenv("DAWARE_SAVE_MS", milliseconds, 1);
	child = begin(argv);
	if (child < 0)
		return -errno;
	status = wait_for(child, left);
	return status == 0 ? 0 : status == -1 ? -ETIMEDOUT : -ECANCELED;
}

static void end(int number, pid_t from, void *argument)
{
	(void)number;
	(void)from;
	(void)argument;
	run.ends = 1;
}

int main(int argc, char *argv[])
{
	static const char usage[] = "daware-run [--on-save COMMAND] [--save-time SECONDS] [--] PROGRAM [ARGUMENT]...";
	static const struct option options[] = {{"on-save", required_argument, NULL, 's'},
		{"save-time", required_argument, NULL, 't'}, TOOL_OPTIONS};
	struct pollfd asked = {.events = POLLIN};
	int option, error, left = 10000;

	while ((option = getopt_long(argc, argv, "+", options, NULL)) != -1) {
		if (option == 's') {
			run.command = optarg;
		} else if (option == 't') {
			char *rest;
			double seconds = strtod(optarg, &rest);

			if (rest == optarg || *rest != '\0' || !(seconds >= 0.001 && seconds <= 86400))
				return tool_wrong(usage, "--save-time is seconds, up to 86400");
			left = (int)(seconds * 1000);
		} else {
			return tool_usual(option, usage);
		}
	}
	if (optind == argc)
		return tool_wrong(usage, "expected a program");
	{
		char milliseconds[16];

		snprintf(milliseconds, sizeof milliseconds, "%d", left);
		setenv("DAWARE_SAVE_MS", milliseconds, 1);
	}
	error = daware_open(argv[optind], DAWARE_LOOP);
	if (error == 0)
		error = daware_on_signal(SIGCHLD, reap, NULL);
	if (error == 0 && run.command != NULL)
		error = daware_on_save(0, save, NULL);
	if (error == 0)
		error = daware_on_signal(SIGTERM, end, NULL);
	if (error == 0)
		error = daware_on_signal(SIGINT, end, NULL);
	if (error == 0)
		error = daware_fd(&asked.fd);
	if (error != 0)
		return tool_ended("cannot begin", error);
	run.program = begin(argv + optind);
	if (run.program < 0)
		return tool_ended(argv[optind], -errno);
	while (run.status == -1 && !run.ends) {
		poll(&asked, 1, -1);
		daware_dispatch(1);
	}
	if (run.status == -1) {
		int how;

		daware_terminate(run.program, left, &how);
		waitpid(run.program, &run.status, 0);
	}
	return WIFSIGNALED(run.status) ? 128 + WTERMSIG(run.status) : WEXITSTATUS(run.status);
}
