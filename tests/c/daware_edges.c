// SPDX-License-Identifier: Apache-2.0
/* What tests/cli/test_libdaware.py looks at from outside: argv[1] says what to do. Each failed check says so. */
#define _GNU_SOURCE
#include <daware.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static atomic_int failures;

#define CHECK(true)                                                                                                    \
	do {                                                                                                           \
		if (!(true)) {                                                                                         \
			printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #true);                                      \
			failures++;                                                                                    \
		}                                                                                                      \
	} while (0)

/* Tell the test that it may go on, or wait until it says so. */
static void say(const char *word)
{
	printf("%s\n", word);
	fflush(stdout);
}

static void await(void)
{
	char line[16];

	CHECK(fgets(line, sizeof line, stdin) != NULL);
}

static void do_log(void)
{
	static char large[(1 << 20) + 1];
	uint64_t lost;

	CHECK(daware_log(LOG_ERR, "early", "x") == -ENOTCONN);
	CHECK(daware_open("edge s", 0) == 0 && daware_open("again", 0) == -EALREADY);
	CHECK(daware_log(LOG_ERR, "plain", "%d of %s", 7, "them") == 0);
	CHECK(daware_logkv(LOG_INFO | LOG_LOCAL3, "kv", "a]\"\\b", "key", "a]\"\\b\n", "b=d key", "\xff\xc0\x80\xed\xa0\x80",
		"none", (char *)NULL, NULL) == 0);
	CHECK(daware_log(LOG_ERR, "bad utf", "\xff|\xe2\x82\xac|\xe2\x82|line\nend") == 0);
	memset(large, 'x', sizeof large - 1);
	CHECK(daware_log(LOG_ERR, "large", "%s", large) == 0);
	CHECK(daware_logkv(LOG_ERR, "large", large, "key", large, "next", "one", NULL) == 0);
	CHECK(daware_log(LOG_ERR, NULL, NULL) == -EINVAL && daware_logkv(LOG_ERR, NULL, NULL, NULL) == 0);
	CHECK(daware_log_pairs(LOG_ERR, "pairs", "of", (const char *const[]){"one", "1", "two", "2", NULL}) == 0);
	DAWARE_WARN("macro", "with %s", "place");
	for (int at = 0; at < 5; at++)
		DAWARE_ONCE(DAWARE_INFO("once", "alone"));
	CHECK(daware_dropped(&lost) == 0 && lost == 0);
	daware_close();
	CHECK(daware_open(NULL, 0) == 0);
	daware_close();
}

static void do_absent(void)
{
	uint64_t lost;

	CHECK(daware_open("edges", 0) == 0);
	for (int at = 0; at < 30; at++)
		CHECK(daware_log(LOG_INFO, "lost", "%d", at) < 0);
	CHECK(daware_dropped(&lost) == 0 && lost == 30);
	say("absent");
	await();
	CHECK(daware_log(LOG_INFO, "there", "now") == 0);
	say("sent");
	await(); /* the log is restarted */
	CHECK(daware_log(LOG_INFO, "again", "now") == 0);
}

static void do_full(void)
{
	struct timespec before, after;
	uint64_t lost;

	CHECK(daware_open("edges", 0) == 0);
	clock_gettime(CLOCK_MONOTONIC, &before);
	for (int at = 0; at < 2000; at++)
		daware_log(LOG_INFO, "full", "%d", at);
	clock_gettime(CLOCK_MONOTONIC, &after);
	CHECK(after.tv_sec - before.tv_sec <= 3); /* 200 ms of a second, and the sending */
	CHECK(daware_dropped(&lost) == 0 && lost > 1000);
	printf("%d\n", (int)lost);
	say("full");
	await();
	CHECK(daware_log(LOG_INFO, "empty", "again") == 0);
	CHECK(daware_log(LOG_INFO, "empty", "still") == 0);
}

static void *logs(void *number)
{
	for (int at = 0; at < 50; at++)
		daware_log(LOG_INFO, "thread", "%d %d", *(int *)number, at);
	return NULL;
}

/* They cannot begin a thread in a child of a process that has some: one may have held a lock of theirs. */
#if defined __SANITIZE_THREAD__ || defined __SANITIZE_ADDRESS__
#define IN_CHILD DAWARE_LOOP
#else
#define IN_CHILD 0
#endif

static void do_threads(void)
{
	pthread_t threads[64];
	int numbers[64];
	uint64_t lost;

	CHECK(daware_open("edges", 0) == 0);
	for (int at = 0; at < 64; at++) {
		numbers[at] = at;
		CHECK(pthread_create(&threads[at], NULL, logs, &numbers[at]) == 0);
	}
	for (int at = 0; at < 20; at++) { /* children of a process whose threads are in the middle of it */
		pid_t child = fork();
		int status;

		if (child == 0) {
			alarm(20);
			for (int log = 0; log < 3; log++)
				daware_log(LOG_INFO, "child", "%d", log);
			CHECK(daware_on_reload(NULL, NULL) == -ENOTCONN && daware_open("child", IN_CHILD) == 0);
			daware_close();
			_exit(failures != 0);
		}
		CHECK(waitpid(child, &status, 0) == child && status == 0);
	}
	for (int at = 0; at < 64; at++)
		pthread_join(threads[at], NULL);
	CHECK(daware_dropped(&lost) == 0);
	printf("%d\n", (int)lost);
}

static atomic_int sent, seen, calls;

static void count(int number, pid_t from, void *argument)
{
	CHECK(number == SIGUSR1 && from == getpid() && argument == &sent);
	calls++;
	seen = sent;
}

static void do_storm(void)
{
	CHECK(daware_open("edges", 0) == 0);
	CHECK(daware_on_signal(SIGUSR1, count, &sent) == 0);
	CHECK(daware_on_signal(SIGKILL, count, NULL) == -EINVAL && daware_on_signal(0, count, NULL) == -EINVAL);
	for (int at = 0; at < 10000; at++) {
		sent++;
		kill(getpid(), SIGUSR1);
	}
	for (int wait = 0; wait < 1000 && seen != 10000; wait++)
		usleep(10000);
	CHECK(seen == 10000 && calls > 0 && calls <= 10000);
	CHECK(daware_on_signal(SIGUSR1, NULL, NULL) == 0);
	signal(SIGUSR1, SIG_IGN);
	CHECK(daware_on_signal(SIGUSR1, count, &sent) == 0);
	daware_close();
	CHECK(signal(SIGUSR1, SIG_DFL) == SIG_IGN);
}

static int write_word(int number, int left, void *argument)
{
	printf("%s %d %s\n", (char *)argument, number, left > 1000 && left <= 5000 ? "in time" : "late");
	fflush(stdout);
	return strcmp(argument, "second") == 0 ? -EIO : 0;
}

static void reload(void *argument)
{
	say(argument);
}

static void do_save(void)
{
	setenv("DAWARE_SAVE_MS", "5000", 1);
	CHECK(daware_open("edges", 0) == 0);
	CHECK(daware_on_save(20, write_word, "second") == 0);
	CHECK(daware_on_save(30, write_word, "third") == 0);
	CHECK(daware_on_save(10, write_word, "first") == 0);
	CHECK(daware_on_reload(reload, "reloaded") == 0);
	CHECK(daware_ready() == 0 && daware_status("at %s\n", "work") == 0 && daware_heartbeat() == 0);
	say("ready");
	for (;;)
		pause();
}

static void do_loop(void)
{
	struct pollfd asked = {.events = POLLIN};

	CHECK(daware_fd(&asked.fd) == -ENOTCONN && daware_dispatch(1) == -ENOTCONN);
	CHECK(daware_open("edges", DAWARE_LOOP) == 0 && daware_fd(&asked.fd) == 0);
	CHECK(daware_on_signal(SIGUSR1, count, &sent) == 0 && daware_on_reload(reload, "reloaded") == 0);
	CHECK(poll(&asked, 1, 0) == 0 && daware_dispatch(9) == 0);
	kill(getpid(), SIGUSR1);
	kill(getpid(), SIGHUP);
	CHECK(calls == 0 && poll(&asked, 1, 0) == 1);
	CHECK(daware_dispatch(1) == 1 && poll(&asked, 1, 0) == 1 && daware_dispatch(9) == 1);
	CHECK(calls == 1 && poll(&asked, 1, 0) == 0);
	daware_close();
}

static void do_file(const char *directory)
{
	char path[200], found[10] = "";
	struct stat of;
	int fd;

	CHECK(chdir(directory) == 0);
	snprintf(path, sizeof path, "%s/saved", directory);
	CHECK(daware_save_file(path, "one", 3) == 0 && chmod(path, 0640) == 0 && daware_save_file("saved", "two!", 4) == 0);
	fd = open(path, O_RDONLY);
	CHECK(read(fd, found, sizeof found) == 4 && strcmp(found, "two!") == 0);
	CHECK(fstat(fd, &of) == 0 && (of.st_mode & 07777) == 0640);
	CHECK(daware_save_file("/nowhere/saved", "x", 1) == -ENOENT && daware_save_file(NULL, "x", 1) == -EINVAL);
	CHECK(daware_save_file(directory, "x", 1) == -EISDIR && daware_save_file("saved", NULL, 0) == 0);
	CHECK(fstat(fd, &of) == 0 && of.st_size == 4 && stat("saved", &of) == 0 && of.st_size == 0);
}

static void do_terminate(void)
{
	int how = -1, ready[2];
	char word;

	CHECK(pipe(ready) == 0);
	for (int stubborn = 0; stubborn < 2; stubborn++) {
		pid_t child = fork();

		if (child == 0) {
			signal(SIGTERM, stubborn ? SIG_IGN : SIG_DFL);
			CHECK(write(ready[1], "x", 1) == 1);
			for (;;)
				pause();
		}
		CHECK(read(ready[0], &word, 1) == 1);
		CHECK(daware_terminate(child, stubborn ? 100 : 20000, &how) == 0);
		CHECK(how == (stubborn ? DAWARE_KILLED : DAWARE_ENDED));
		CHECK(waitpid(child, NULL, 0) == child);
		CHECK(daware_terminate(child, 0, NULL) == -ESRCH);
	}
}

/* OUTER of a process that has INNER in its own namespace, and one that is nowhere. */
static void do_pid(pid_t outer, pid_t inner)
{
	pid_t found;

	CHECK(daware_pid_inside(outer, outer, &found) == 0 && found == inner);
	CHECK(daware_pid_outside(inner, outer, &found) == 0 && found == outer);
	CHECK(daware_pid_inside(getpid(), outer, &found) == -ESRCH && found == 0);
	CHECK(daware_pid_outside(4000000, outer, &found) == -ESRCH);
	CHECK(daware_pid_inside(getpid(), getpid(), &found) == 0 && found == getpid());
	CHECK(daware_pid_inside(outer, getpid(), &found) == 0 && found == outer);
	CHECK(daware_pid_outside(1, 4000000, &found) == -ESRCH && daware_pid_outside(0, outer, &found) == -EINVAL);
}

int main(int argc, char *argv[])
{
	const char *what = argc > 1 ? argv[1] : "";

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (strcmp(what, "log") == 0)
		do_log();
	else if (strcmp(what, "absent") == 0)
		do_absent();
	else if (strcmp(what, "full") == 0)
		do_full();
	else if (strcmp(what, "threads") == 0)
		do_threads();
	else if (strcmp(what, "storm") == 0)
		do_storm();
	else if (strcmp(what, "save") == 0)
		do_save();
	else if (strcmp(what, "loop") == 0)
		do_loop();
	else if (strcmp(what, "file") == 0)
		do_file(argv[2]);
	else if (strcmp(what, "terminate") == 0)
		do_terminate();
	else if (strcmp(what, "pid") == 0)
		do_pid(atoi(argv[2]), atoi(argv[3]));
	else
		failures++;
	printf("%d failures\n", failures);
	return failures != 0;
}
