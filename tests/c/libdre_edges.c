// SPDX-License-Identifier: Apache-2.0
/* What can go wrong between libdreapp and its co-process, here tests/c/coprocess: argv[1]. Each failed check says so. */
#define _GNU_SOURCE
#include <dre/dreapp.h>
#include <errno.h>
#include <json-c/json.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static int failures;

#define CHECK(true)                                                                                                    \
	do {                                                                                                           \
		if (!(true)) {                                                                                         \
			printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #true);                                      \
			__atomic_add_fetch(&failures, 1, __ATOMIC_RELAXED);                                            \
		}                                                                                                      \
	} while (0)

static dre_app *opened(const char *program, double timeout)
{
	struct dre_options options = DRE_OPTIONS_INIT;
	dre_app *handle;

	options.program = program;
	options.timeout = timeout;
	CHECK(dre_app_open(&options, &handle) == 0);
	return handle;
}

/* Have the co-process do *what*; the field *key* of the first row in *found*, which has room for 100. */
static int ask(dre_app *handle, const char *what, const char *word, const char *key, char *found)
{
	const char *const argv[] = {what, word, NULL};
	json_object *rows, *value;
	char *text;
	int error = dre_app_call(handle, argv, &text);

	if (error != 0 || found == NULL) {
		dre_app_free(text);
		return error;
	}
	rows = json_tokener_parse(text);
	json_object_object_get_ex(json_object_array_get_idx(rows, 0), key, &value);
	snprintf(found, 100, "%s", json_object_get_string(value));
	json_object_put(rows);
	dre_app_free(text);
	return 0;
}

/* Whether there is no such process any more within 10 s, but for what its parent may not have looked at yet. */
static int ended(const char *pid)
{
	char path[200], state = 'R';
	FILE *file;

	snprintf(path, sizeof path, "/proc/%s/stat", pid);
	for (int wait = 0; wait < 1000 && state != 'Z'; wait++) {
		file = fopen(path, "r");
		if (file == NULL)
			return 1;
		if (fscanf(file, "%*d %*s %c", &state) != 1)
			state = 'Z';
		fclose(file);
		usleep(10000);
	}
	return state == 'Z';
}

static void it_may_die_or_talk_nonsense(const char *program)
{
	static const struct {
		const char *what;
		int error;
	} faults[] = {{"die", -EPIPE}, {"garbage", -EPROTO}, {"other-id", -EPROTO}, {"no-rows", -EPROTO},
		{"rows-of-text", -EPROTO}, {"two-values", -EPROTO}, {"long", -EPROTO}, {"deep", -EPROTO},
		{"half", -EPIPE}, {"close", -EPIPE}};
	dre_app *handle = opened(program, 20);
	char pid[100], next[100];

	for (size_t at = 0; at < sizeof faults / sizeof *faults; at++) {
		CHECK(ask(handle, "tell", "", "pid", pid) == 0);
		CHECK(ask(handle, faults[at].what, "", NULL, NULL) == faults[at].error);
		CHECK(strlen(dre_app_strerror(handle)) > 0);
		CHECK(ask(handle, "tell", "", "pid", next) == 0);
		CHECK(strcmp(pid, next) != 0);
	}
	CHECK(ask(handle, "refuse", "3", NULL, NULL) == -ENOENT);
	CHECK(strcmp(dre_app_strerror(handle), "refused: 3") == 0);
	for (int code = 0; code < 9; code++) {
		static const int errors[] = {0, -ECANCELED, -EINVAL, -ENOENT, -EPERM, -ETIMEDOUT, -EOPNOTSUPP, -ECANCELED,
			-ECANCELED};
		char text[2] = {(char)('0' + code), '\0'};

		CHECK(ask(handle, "refuse", text, NULL, NULL) == errors[code]);
	}
	CHECK(ask(handle, "tell", "", "pid", pid) == 0);
	CHECK(strcmp(pid, next) == 0);
	dre_app_close(handle);
	CHECK(ended(pid));
}

static void it_may_take_too_long(const char *program)
{
	dre_app *handle = opened(program, 0.2);
	char pid[100];

	CHECK(ask(handle, "tell", "", "pid", pid) == 0);
	CHECK(ask(handle, "sleep", "", NULL, NULL) == -ETIMEDOUT);
	CHECK(ended(pid));
	CHECK(ask(handle, "tell", "", NULL, NULL) == 0);
	dre_app_close(handle);
}

static volatile sig_atomic_t signals;

static void count(int number)
{
	(void)number;
	signals++;
}

static void the_caller_is_left_alone(const char *program)
{
	struct sigaction mine = {.sa_handler = count}, was;
	sigset_t before, after;
	dre_app *handle = opened(program, 20);
	char told[100];

	sigaction(SIGCHLD, &mine, NULL);
	sigaction(SIGPIPE, &mine, NULL);
	signal(SIGHUP, SIG_IGN);
	setenv("SECRET", "1", 1);
	CHECK(dup2(1, 77) == 77); /* a descriptor that nobody meant to pass on */
	sigprocmask(SIG_BLOCK, NULL, &before);
	CHECK(ask(handle, "tell", "", "environment", told) == 0);
	CHECK(strcmp(told, "LC_ALL=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin") == 0);
	CHECK(ask(handle, "tell", "", "descriptors", told) == 0);
	CHECK(strcmp(told, "0 1 2") == 0);
	CHECK(ask(handle, "tell", "", "hangup", told) == 0);
	CHECK(strcmp(told, "default") == 0);
	CHECK(ask(handle, "die", "", NULL, NULL) == -EPIPE);
	CHECK(ask(handle, "tell", "", NULL, NULL) == 0);
	CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
	dre_app_close(handle);
	sigprocmask(SIG_BLOCK, NULL, &after);
	for (int number = 1; number < NSIG; number++)
		CHECK(sigismember(&before, number) == sigismember(&after, number));
	CHECK(signals == 0);
	sigaction(SIGCHLD, NULL, &was);
	CHECK(was.sa_handler == count);
	signal(SIGCHLD, SIG_DFL);
	signal(SIGPIPE, SIG_DFL);
	close(77);
}

static void *many(void *shared)
{
	char word[32], found[100];

	for (int at = 0; at < 10; at++) {
		snprintf(word, sizeof word, "%lx-%d", (unsigned long)pthread_self(), at);
		CHECK(ask(shared, "tell", word, "word", found) == 0);
		CHECK(strcmp(word, found) == 0);
		CHECK(ask(shared, "refuse", "1", NULL, NULL) == -ECANCELED);
		CHECK(strcmp(dre_app_strerror(shared), "refused: 1") == 0);
	}
	return NULL;
}

static void share(dre_app *handle)
{
	pthread_t threads[8];

	for (size_t at = 0; at < 8; at++)
		CHECK(pthread_create(&threads[at], NULL, many, handle) == 0);
	for (size_t at = 0; at < 8; at++)
		pthread_join(threads[at], NULL);
}

static void threads_share_a_handle(const char *program)
{
	dre_app *handle = opened(program, 60);

	share(handle);
	dre_app_close(handle);
}

static void after_a_fork_both_go_on(const char *program)
{
	dre_app *handle = opened(program, 20);
	char mine[100], again[100];
	int status;
	pid_t child;

	CHECK(ask(handle, "tell", "", "pid", mine) == 0);
	child = fork();
	if (child == 0) {
		char its[100];

		failures = 0;
		share(handle);
		CHECK(ask(handle, "tell", "", "pid", its) == 0);
		CHECK(strcmp(mine, its) != 0);
		dre_app_close(handle);
		_exit(failures != 0);
	}
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	CHECK(ask(handle, "tell", "", "pid", again) == 0);
	CHECK(strcmp(mine, again) == 0);
	dre_app_close(handle);
}

static void results_are_typed(const char *program)
{
	dre_app *handle = opened(program, 20);
	struct dre_container **list, *one;
	struct dre_resources *used;
	struct dre_saved **tags;
	struct dre_output *output;
	const char *const argv[] = {"any", NULL};

	CHECK(dre_app_list(handle, &list) == 0);
	CHECK(list[0] != NULL && list[1] != NULL && list[2] == NULL);
	CHECK(strcmp(list[0]->name, "one") == 0 && strcmp(list[0]->state, "running") == 0 && list[0]->pid == 17);
	CHECK(strcmp(list[0]->ip[0], "10.0.0.1") == 0 && strcmp(list[0]->ip[1], "10.0.0.2") == 0);
	CHECK(list[0]->ip[2] == NULL && list[0]->snapshots[0] == NULL);
	CHECK(fabs(list[0]->cpu - 1.5) < 1e-9 && list[0]->memory == 5000000000 && list[0]->pids == -1);
	CHECK(strcmp(list[1]->name, "\xe2\x82\xac\"") == 0 && list[1]->state == NULL && list[1]->ip[0] == NULL);
	dre_app_free(list);
	CHECK(dre_app_status(handle, "one", &one) == 0 && strcmp(one->name, "one") == 0);
	dre_app_free(one);
	CHECK(dre_app_resources(handle, "one", 0, &used) == 0 && used->oom_kills == 2 && used->io_read < 0);
	dre_app_free(used);
	CHECK(dre_app_snapshot_list(handle, "one", &tags) == 0 && strcmp(tags[0]->tag, "t") == 0 && tags[0]->bytes == 7);
	dre_app_free(tags);
	CHECK(dre_app_exec(handle, "one", argv, "in\0put", 6, &output) == 0);
	CHECK(output->out_length == 6 && memcmp(output->out, "in\0put", 7) == 0 && output->status == 5);
	CHECK(output->err_length == 0 && output->err[0] == '\0' && output->truncated == 1);
	dre_app_free(output);
	dre_app_close(handle);
}

static void wrong_arguments_are_refused(const char *program)
{
	struct dre_options options = {.size = sizeof options, .program = "dre-app"};
	struct dre_container *one = (void *)1;
	struct dre_saved **tags = (void *)1;
	static char large[1 << 20];
	dre_app *handle = opened(program, 20), *none;

	CHECK(dre_app_open(&options, &none) == -EINVAL && none == NULL);
	options.program = "/nowhere/dre-app";
	CHECK(dre_app_open(&options, &none) == 0);
	CHECK(dre_app_start(none, "a") == -EOPNOTSUPP && strstr(dre_app_strerror(none), "/nowhere/dre-app") != NULL);
	dre_app_close(none);
	CHECK(dre_app_status(handle, NULL, &one) == -EINVAL && one == NULL);
	CHECK(dre_app_status(handle, "--json", &one) == -EINVAL);
	CHECK(dre_app_status(handle, "one", NULL) == -EINVAL);
	CHECK(dre_app_snapshot_list(handle, "", &tags) == -EINVAL && tags == NULL);
	CHECK(dre_app_snapshot_delete(handle, "one", NULL) == -EINVAL);
	CHECK(dre_app_start(NULL, "one") == -EINVAL);
	CHECK(dre_app_stop(handle, "one", NAN) == -EINVAL);
	CHECK(dre_app_exec(handle, "one", NULL, NULL, 0, NULL) == -EINVAL);
	memset(large, 'x', sizeof large - 1);
	CHECK(dre_app_start(handle, large) == -E2BIG);
	CHECK(strcmp(dre_app_strerror(NULL), "") == 0);
	dre_app_close(NULL);
	dre_app_free(NULL);
	dre_app_close(handle);
}

int main(int argc, char *argv[])
{
	close(0); /* the ends of the socket pair may get numbers that the co-process needs */
	it_may_die_or_talk_nonsense(argv[1]);
	the_caller_is_left_alone(argv[1]);
	after_a_fork_both_go_on(argv[1]);
	threads_share_a_handle(argv[1]);
	results_are_typed(argv[1]);
	wrong_arguments_are_refused(argv[1]);
	if (argc == 2) /* valgrind 3.19 knows no pidfd, so that there nothing is killed */
		it_may_take_too_long(argv[1]);
	printf("%d failures\n", failures);
	return failures != 0;
}
