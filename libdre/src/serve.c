// SPDX-License-Identifier: Apache-2.0
/*
 * One `dre-app --serve` or `dre-sys --serve` for a handle, and JSON Lines with it over a socket pair.
 *
 * The caller's process is left as it is. The co-process is no child of it, so that no SIGCHLD comes and no wait(2) of
 * the caller's finds it: the child between them is made by clone(2) with no signal for its end, and must be asked for by
 * __WALL. The co-process gets an environment and descriptors of its own, and default signals. In a process that the
 * caller forks, a handle begins one of its own.
 */
#define _GNU_SOURCE
#include "serve.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
	LONGEST = 1 << 20, /* octets of a line, as dre-app(8) has it */
	DEPTH = 32,        /* of JSON */
	TIMEOUT = 600,     /* seconds */
	SPARE = 5,         /* seconds that it may need to say that the time is over */
};

struct dre_handle {
	pthread_mutex_t lock;
	_Atomic pid_t owner; /* the process whose co-process it is */
	int fd;              /* the socket to it; -1: there is none */
	int process;         /* a pidfd of it; -1: this system has none, and the end of the socket must do */
	char *program;
	char *config; /* NULL: the command's default */
	double timeout;
	int64_t id;
	char *line; /* LONGEST + 1 octets, with what came and was not read */
	size_t filled;
};

/* What the last failed call of this thread was told, on which handle. */
static _Thread_local struct {
	const struct dre_handle *handle;
	char text[1024];
} last;

int dre_fail(const struct dre_handle *handle, int error, const char *format, ...)
{
	va_list words;

	last.handle = handle;
	va_start(words, format);
	vsnprintf(last.text, sizeof last.text, format, words);
	va_end(words);
	return error;
}

const char *dre_handle_error(const struct dre_handle *handle)
{
	return handle != NULL && last.handle == handle ? last.text : "";
}

int dre_handle_open(const struct dre_options *options, const char *program, struct dre_handle **handle)
{
	struct dre_options given = DRE_OPTIONS_INIT;
	struct dre_handle *made;

	if (handle == NULL)
		return -EINVAL;
	*handle = NULL;
	if (options != NULL)
		memcpy(&given, options, options->size < sizeof given ? options->size : sizeof given);
	if (given.program != NULL)
		program = given.program;
	if (program[0] != '/' || !(given.timeout >= 0 && given.timeout <= 86400))
		return -EINVAL;
	made = calloc(1, sizeof *made);
	if (made == NULL)
		return -ENOMEM;
	made->program = strdup(program);
	made->config = given.config != NULL ? strdup(given.config) : NULL;
	made->line = malloc(LONGEST + 1);
	if (made->program == NULL || made->line == NULL || (given.config != NULL && made->config == NULL)) {
		free(made->program);
		free(made->config);
		free(made->line);
		free(made);
		return -ENOMEM;
	}
	made->timeout = given.timeout > 0 ? given.timeout : TIMEOUT;
	made->process = made->fd = -1;
	made->owner = getpid();
	pthread_mutex_init(&made->lock, NULL);
	*handle = made;
	return 0;
}

/* End the co-process, whatever it does: as after any kill, what it had begun is ended by the next call. */
static void end(struct dre_handle *handle)
{
	struct pollfd gone = {.fd = handle->process, .events = POLLIN};

	if (handle->fd >= 0)
		close(handle->fd);
	if (handle->process >= 0) {
		syscall(SYS_pidfd_send_signal, handle->process, SIGKILL, NULL, 0U);
		while (poll(&gone, 1, -1) < 0 && errno == EINTR)
			;
		close(handle->process);
	}
	handle->process = handle->fd = -1;
	handle->filled = 0;
}

/*
 * In a process that was forked since: what is there is the parent's, and so may be the lock. Of several threads that come
 * first, one puts it in order while the owner is the process's number, negative.
 */
static void inherit(struct dre_handle *handle)
{
	pid_t me = getpid(), owner = handle->owner;

	while (owner != me) {
		if (owner == -me) {
			sched_yield();
			owner = handle->owner;
		} else if (atomic_compare_exchange_strong(&handle->owner, &owner, -me)) {
			pthread_mutex_init(&handle->lock, NULL);
			if (handle->fd >= 0)
				close(handle->fd);
			if (handle->process >= 0)
				close(handle->process);
			handle->process = handle->fd = -1;
			handle->filled = 0;
			handle->owner = owner = me;
		}
	}
}

void dre_handle_close(struct dre_handle *handle)
{
	if (handle == NULL)
		return;
	inherit(handle);
	end(handle);
	pthread_mutex_destroy(&handle->lock);
	free(handle->program);
	free(handle->config);
	free(handle->line);
	free(handle);
	if (last.handle == handle)
		last.handle = NULL;
}

/* What _exit(2) does, of which ThreadSanitizer makes more: it waits for threads that the new process does not have. */
static _Noreturn void leave(int status)
{
	for (;;)
		syscall(SYS_exit_group, status);
}

/* In the new process, which has a copy of all memory but only this thread: system calls alone. */
static _Noreturn void become(const char *program, char *const argv[], int end)
{
	static char *const environment[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", NULL};
	const struct sigaction usual = {.sa_handler = SIG_DFL};
	sigset_t none;
	int null;

	for (int number = 1; number < NSIG; number++)
		sigaction(number, &usual, NULL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	setsid();
	/* Above the standard ones, so that dup2() cannot hit a source of its own. */
	end = fcntl(end, F_DUPFD, 3);
	null = open("/dev/null", O_RDWR);
	if (end < 0 || null < 0 || dup2(end, 0) < 0 || dup2(end, 1) < 0 || dup2(null, 2) < 0 || chdir("/") != 0)
		leave(127);
	syscall(SYS_close_range, 3U, ~0U, 0U);
	execve(program, argv, environment);
	leave(127);
}

/* What fork(2) does, but no signal comes when the new process ends. */
static pid_t quiet_fork(void)
{
	return (pid_t)syscall(SYS_clone, 0UL, NULL, NULL, NULL, 0UL);
}

/* The pipes by which the new process is told of, and told to begin. */
struct pipes {
	int pid[2];
	int go[2];
};

/* In the child between: make the co-process, tell its number, and end. */
static _Noreturn void between(const char *program, char *const argv[], int end, const struct pipes *pipes)
{
	pid_t made = quiet_fork();
	char go;

	if (made != 0)
		leave(write(pipes->pid[1], &made, sizeof made) != sizeof made);
	close(pipes->go[1]); /* it is the caller's alone, whose end would be the end of this, too */
	if (read(pipes->go[0], &go, 1) != 1)
		leave(0);
	become(program, argv, end);
}

/* Make the co-process with *end* as its standard input and output, and a pidfd of it, *process*; 0 or a negative errno. */
static int spawn(const char *program, char *const argv[], int end, const struct pipes *pipes, int *process)
{
	sigset_t all, before;
	pid_t child, made = -1;
	int error;

	sigfillset(&all); /* none of the caller's handlers shall run in the new processes */
	pthread_sigmask(SIG_SETMASK, &all, &before);
	child = quiet_fork();
	error = errno;
	if (child == 0)
		between(program, argv, end, pipes);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (child < 0)
		return -error;
	while (waitpid(child, NULL, __WALL) < 0 && errno == EINTR)
		;
	/* It has written: a few octets, which fit. Without, this is the end of the pipe, for only we hold its other end. */
	if (fcntl(pipes->pid[0], F_SETFL, O_NONBLOCK) != 0 || read(pipes->pid[0], &made, sizeof made) != sizeof made ||
	    made < 0)
		return -EAGAIN;
	*process = (int)syscall(SYS_pidfd_open, made, 0U); /* it waits, so that it is this one and no other */
	if (*process < 0 && errno != ENOSYS)               /* as before Linux 5.3, and in valgrind 3.19 */
		return -errno;
	return write(pipes->go[1], "", 1) == 1 ? 0 : -EAGAIN;
}

static void close_both(int ends[2])
{
	close(ends[0]);
	close(ends[1]);
}

static int begin(struct dre_handle *handle)
{
	char *argv[] = {handle->program, "--config", handle->config, "--serve", NULL};
	struct pipes pipes;
	int ends[2], error = 0;

	if (handle->config == NULL) {
		argv[1] = "--serve";
		argv[2] = NULL;
	}
	if (access(handle->program, X_OK) != 0)
		return dre_fail(handle, -EOPNOTSUPP, "%s: %s", handle->program, strerror(errno));
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
		return dre_fail(handle, -errno, "socketpair: %s", strerror(errno));
	if (pipe2(pipes.pid, O_CLOEXEC) != 0) {
		error = -errno;
	} else {
		if (pipe2(pipes.go, O_CLOEXEC) != 0) {
			error = -errno;
		} else {
			error = spawn(handle->program, argv, ends[1], &pipes, &handle->process);
			close_both(pipes.go);
		}
		close_both(pipes.pid);
	}
	close(ends[1]);
	handle->fd = ends[0];
	if (error == 0)
		return 0;
	end(handle);
	return dre_fail(handle, error, "%s cannot be started: %s", handle->program, strerror(-error));
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* Wait until the socket is ready for *events*, at most until *until*. */
static int ready(const struct dre_handle *handle, short events, double until)
{
	for (;;) {
		struct pollfd asked = {.fd = handle->fd, .events = events};
		double left = (until - now()) * 1000 + 1;
		int found;

		if (left <= 0)
			return dre_fail(handle, -ETIMEDOUT, "%s did not answer in time", handle->program);
		found = poll(&asked, 1, left > INT_MAX ? INT_MAX : (int)left);
		if (found > 0)
			return 0;
		if (found < 0 && errno != EINTR)
			return dre_fail(handle, -errno, "poll: %s", strerror(errno));
	}
}

static int gone(const struct dre_handle *handle)
{
	return dre_fail(handle, -EPIPE, "%s ended unexpectedly", handle->program);
}

static int send_all(const struct dre_handle *handle, const char *octets, size_t length, double until)
{
	while (length > 0) {
		ssize_t sent = send(handle->fd, octets, length, MSG_NOSIGNAL | MSG_DONTWAIT);
		int error;

		if (sent >= 0) {
			octets += sent;
			length -= (size_t)sent;
		} else if (errno == EAGAIN) {
			error = ready(handle, POLLOUT, until);
			if (error != 0)
				return error;
		} else if (errno != EINTR) {
			return gone(handle);
		}
	}
	return 0;
}

/* One line without its end, in handle->line; *length* of it. */
static int receive_line(struct dre_handle *handle, size_t *length, double until)
{
	size_t seen = 0;

	for (;;) {
		char *found = memchr(handle->line + seen, '\n', handle->filled - seen);
		ssize_t came;
		int error;

		if (found != NULL) {
			*length = (size_t)(found - handle->line);
			return 0;
		}
		seen = handle->filled;
		if (handle->filled > LONGEST)
			return dre_fail(handle, -EPROTO, "%s: its answer is too long", handle->program);
		came = recv(handle->fd, handle->line + handle->filled, LONGEST + 1 - handle->filled, MSG_DONTWAIT);
		if (came > 0) {
			handle->filled += (size_t)came;
		} else if (came < 0 && errno == EAGAIN) {
			error = ready(handle, POLLIN, until);
			if (error != 0)
				return error;
		} else if (came == 0 || errno != EINTR) {
			return gone(handle);
		}
	}
}

/* {"id":…,"code":…,"rows":[{…},…],…}, for that *id*. */
static int is_answer(json_object *found, int64_t id)
{
	json_object *same, *code, *rows;

	if (!json_object_object_get_ex(found, "id", &same) || !json_object_is_type(same, json_type_int) ||
	    json_object_get_int64(same) != id || !json_object_object_get_ex(found, "code", &code) ||
	    !json_object_is_type(code, json_type_int) || !json_object_object_get_ex(found, "rows", &rows) ||
	    !json_object_is_type(rows, json_type_array))
		return 0;
	for (size_t row = 0; row < json_object_array_length(rows); row++)
		if (!json_object_is_type(json_object_array_get_idx(rows, row), json_type_object))
			return 0;
	return 1;
}

static int receive(struct dre_handle *handle, int64_t id, json_object **answer, double until)
{
	json_tokener *reader = json_tokener_new_ex(DEPTH);
	json_object *found = NULL;
	size_t length = 0;
	int error = reader != NULL ? receive_line(handle, &length, until) : -ENOMEM;

	if (error == 0) {
		found = json_tokener_parse_ex(reader, handle->line, (int)length);
		if (json_tokener_get_error(reader) != json_tokener_success ||
		    json_tokener_get_parse_end(reader) != length || !is_answer(found, id)) {
			error = dre_fail(handle, -EPROTO, "%s: its answer is none", handle->program);
			json_object_put(found);
			found = NULL;
		}
		handle->filled -= length + 1;
		memmove(handle->line, handle->line + length + 1, handle->filled);
	}
	json_tokener_free(reader);
	*answer = found;
	return error;
}

static char *base64(const unsigned char *octets, size_t length)
{
	static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	char *text = malloc((length + 2) / 3 * 4 + 1), *at = text;

	for (size_t place = 0; text != NULL && place < length; place += 3) {
		size_t left = length - place;
		uint32_t three = (uint32_t)octets[place] << 16 | (left > 1 ? (uint32_t)octets[place + 1] << 8 : 0) |
				 (left > 2 ? octets[place + 2] : 0);

		*at++ = letters[three >> 18];
		*at++ = letters[three >> 12 & 63];
		*at++ = left > 1 ? letters[three >> 6 & 63] : '=';
		*at++ = left > 2 ? letters[three & 63] : '=';
	}
	if (text != NULL)
		*at = '\0';
	return text;
}

/* The request as one line; NULL without memory. *argv* is consumed. */
static json_object *request_of(const struct dre_handle *handle, int64_t id, json_object *argv, const void *input,
	size_t length)
{
	json_object *request = json_object_new_object();
	char *text = length > 0 ? base64(input, length) : NULL;

	if (request == NULL || (length > 0 && text == NULL)) {
		json_object_put(request);
		json_object_put(argv);
		free(text);
		return NULL;
	}
	json_object_object_add(request, "id", json_object_new_int64(id));
	json_object_object_add(request, "argv", argv);
	json_object_object_add(request, "deadline", json_object_new_double(handle->timeout));
	if (text != NULL)
		json_object_object_add(request, "stdin", json_object_new_string(text));
	free(text);
	return request;
}

static int exchange(struct dre_handle *handle, json_object *request, int64_t id, json_object **answer)
{
	size_t length;
	const char *line = json_object_to_json_string_length(request, JSON_C_TO_STRING_PLAIN, &length);
	double until = now() + handle->timeout + SPARE;
	int error;

	if (line == NULL)
		return dre_fail(handle, -ENOMEM, "no memory");
	if (length > LONGEST)
		return dre_fail(handle, -E2BIG, "a request has at most %d octets", LONGEST);
	error = handle->fd < 0 ? begin(handle) : 0;
	if (error == 0)
		error = send_all(handle, line, length, until);
	if (error == 0)
		error = send_all(handle, "\n", 1, until);
	if (error == 0)
		error = receive(handle, id, answer, until);
	if (error != 0)
		end(handle); /* what is asked next must not get the answer to this */
	return error;
}

/* The errno of an exit status; see dre-app(8). */
static int error_of(int code)
{
	static const int known[] = {0, -ECANCELED, -EINVAL, -ENOENT, -EPERM, -ETIMEDOUT, -EOPNOTSUPP};

	return code >= 0 && code < (int)(sizeof known / sizeof *known) ? known[code] : -ECANCELED;
}

int dre_ask(struct dre_handle *handle, json_object *argv, const void *input, size_t length, json_object **answer)
{
	json_object *request, *code, *said;
	int64_t id;
	int error;

	*answer = NULL;
	if (argv == NULL)
		return dre_fail(handle, -ENOMEM, "no memory");
	inherit(handle);
	pthread_mutex_lock(&handle->lock);
	id = ++handle->id;
	request = request_of(handle, id, argv, input, length);
	error = request != NULL ? exchange(handle, request, id, answer) : dre_fail(handle, -ENOMEM, "no memory");
	pthread_mutex_unlock(&handle->lock);
	json_object_put(request);
	if (error != 0)
		return error;
	json_object_object_get_ex(*answer, "code", &code);
	json_object_object_get_ex(*answer, "error", &said);
	error = error_of(json_object_get_int(code));
	/* 1 and not a word is no failure: it is how `status` says that something does not run. */
	if (error != 0 && (json_object_get_int(code) != 1 || json_object_get_string_len(said) > 0)) {
		dre_fail(handle, error, "%s", said != NULL ? json_object_get_string(said) : "");
		json_object_put(*answer);
		*answer = NULL;
		return error;
	}
	return 0;
}
