// SPDX-License-Identifier: Apache-2.0
/*
 * Signals become calls. A handler notes who sent the signal and writes to an eventfd, no more; the calls are made by a
 * thread of ours, or by the caller's in daware_dispatch().
 *
 * What is noted is taken after the eventfd was read, so that after the last signal there is always a call to come. In a
 * process that the caller forks, the handlers are those of before, and nothing of this is open.
 */
#define _GNU_SOURCE
#include "private.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum {
	SIGNALS = 65,
	SAVES = 64,
	LEFT = 10000, /* milliseconds to save, where $DAWARE_SAVE_MS does not say */
};

/* What a signal leads to; the first two are what the handler writes. */
static struct {
	atomic_int came;
	atomic_int from;
	int ours; /* whether the handler is in place */
	struct sigaction before;
	void (*call)(int number, pid_t from, void *argument);
	void *argument;
} signals[SIGNALS];

static struct {
	int priority;
	int (*call)(int number, int left, void *argument);
	void *argument;
} saves[SAVES];

static struct {
	atomic_int open;
	atomic_int fd; /* the eventfd, which stays: a handler may be about to write to it; 0: none yet */
	pthread_mutex_t lock; /* of all but what handlers write */
	int saves;
	void (*reload)(void *argument);
	void *reload_argument;
	int left;
	int threaded;
	pthread_t thread;
	atomic_int ends;
} state = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void handler(int number, siginfo_t *info, void *context)
{
	static const uint64_t one = 1;
	int before = errno;

	(void)context;
	atomic_store(&signals[number].from, info->si_code == SI_USER || info->si_code == SI_QUEUE ? info->si_pid : 0);
	atomic_store(&signals[number].came, 1);
	if (write(state.fd, &one, sizeof one) < 0) {
		/* It is full of what is to be read yet. */
	}
	errno = before;
}

/* Put our handler in the place of *number*'s, or take it away; under the lock. */
static int watch(int number, int wanted)
{
	struct sigaction ours = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART};

	if (signals[number].ours == wanted)
		return 0;
	sigemptyset(&ours.sa_mask);
	if (wanted ? sigaction(number, &ours, &signals[number].before) : sigaction(number, &signals[number].before, NULL))
		return -errno;
	signals[number].ours = wanted;
	return 0;
}

static int needed(int number)
{
	return signals[number].call != NULL || (number == SIGHUP && state.reload != NULL) ||
	       ((number == SIGTERM || number == SIGINT) && state.saves > 0);
}

PUBLIC int daware_on_signal(int number, void (*call)(int number, pid_t from, void *argument), void *argument)
{
	int error;

	if (number < 1 || number >= SIGNALS)
		return -EINVAL;
	if (!state.open)
		return -ENOTCONN;
	pthread_mutex_lock(&state.lock);
	signals[number].call = call;
	signals[number].argument = argument;
	error = watch(number, needed(number));
	if (error != 0)
		signals[number].call = NULL;
	pthread_mutex_unlock(&state.lock);
	return error;
}

PUBLIC int daware_on_reload(void (*call)(void *argument), void *argument)
{
	int error;

	if (!state.open)
		return -ENOTCONN;
	pthread_mutex_lock(&state.lock);
	state.reload = call;
	state.reload_argument = argument;
	error = watch(SIGHUP, needed(SIGHUP));
	pthread_mutex_unlock(&state.lock);
	return error;
}

PUBLIC int daware_on_save(int priority, int (*call)(int number, int left, void *argument), void *argument)
{
	int error, at;

	if (call == NULL)
		return -EINVAL;
	if (!state.open)
		return -ENOTCONN;
	pthread_mutex_lock(&state.lock);
	if (state.saves == SAVES) {
		error = -ENOSPC;
	} else {
		for (at = state.saves++; at > 0 && saves[at - 1].priority > priority; at--)
			saves[at] = saves[at - 1];
		saves[at].priority = priority;
		saves[at].call = call;
		saves[at].argument = argument;
		error = watch(SIGTERM, 1);
		if (error == 0)
			error = watch(SIGINT, 1);
	}
	pthread_mutex_unlock(&state.lock);
	return error;
}

/* --- what is done then --- */

/* Call all that save, and log how that went. */
static void save(int number)
{
	int64_t begun = daware_now();
	int failed = 0, first = 0, count;
	char results[SAVES * 8] = "";

	pthread_mutex_lock(&state.lock);
	count = state.saves;
	pthread_mutex_unlock(&state.lock);
	daware_notify("STOPPING=1");
	for (int at = 0; at < count; at++) {
		int64_t left = state.left - (daware_now() - begun);
		int result = saves[at].call(number, left > 0 ? (int)left : 0, saves[at].argument);
		size_t length = strlen(results);

		snprintf(results + length, sizeof results - length, at > 0 ? ",%d" : "%d", result);
		failed += result != 0;
		first = first != 0 ? first : result;
	}
	if (count > 0) {
		char milliseconds[24];

		snprintf(milliseconds, sizeof milliseconds, "%lld", (long long)(daware_now() - begun));
		daware_status("%s saved: %s in %s ms", failed ? "not all is" : "all is", results, milliseconds);
		daware_logkv(failed ? LOG_ERR : LOG_NOTICE, "save", failed ? "not all is saved" : "all is saved", "signal",
			strsignal(number), "results", results, "ms", milliseconds, NULL);
	}
}

/* Have *number* act as if nobody had asked for it. */
static void act(int number)
{
	sigset_t only;
	struct sigaction usual = {.sa_handler = SIG_DFL};

	sigaction(number, &usual, NULL);
	sigemptyset(&only);
	sigaddset(&only, number);
	kill(getpid(), number);
	pthread_sigmask(SIG_UNBLOCK, &only, NULL);
	_exit(128 + number); /* the first process of a PID namespace: it is immune to what it has no handler for */
}

static void deal_with(int number)
{
	void (*call)(int, pid_t, void *);
	void (*reload)(void *);
	void *argument, *reload_argument;
	pid_t from = atomic_load(&signals[number].from);
	int ends;

	pthread_mutex_lock(&state.lock);
	call = signals[number].call;
	argument = signals[number].argument;
	reload = number == SIGHUP ? state.reload : NULL;
	reload_argument = state.reload_argument;
	ends = (number == SIGTERM || number == SIGINT) && state.saves > 0;
	pthread_mutex_unlock(&state.lock);
	if (ends)
		save(number);
	if (reload != NULL)
		reload(reload_argument);
	if (call != NULL)
		call(number, from, argument);
	else if (ends)
		act(number);
}

PUBLIC int daware_dispatch(int most)
{
	uint64_t times;
	int done = 0;

	if (!state.open)
		return -ENOTCONN;
	if (read(state.fd, &times, sizeof times) < 0 && errno != EAGAIN && errno != EINTR)
		return -errno;
	for (int number = 1; number < SIGNALS; number++) {
		static const uint64_t one = 1;

		if (!atomic_load(&signals[number].came))
			continue;
		if (done == most) /* the next time */
			return write(state.fd, &one, sizeof one) < 0 && errno != EAGAIN ? -errno : done;
		atomic_store(&signals[number].came, 0);
		deal_with(number);
		done++;
	}
	return done;
}

PUBLIC int daware_fd(int *fd)
{
	if (fd == NULL)
		return -EINVAL;
	*fd = state.open ? state.fd : -1;
	return state.open ? 0 : -ENOTCONN;
}

/* --- begin and end --- */

static void *serve(void *unused)
{
	while (!state.ends) {
		struct pollfd asked = {.fd = state.fd, .events = POLLIN};

		if (poll(&asked, 1, -1) > 0 && !state.ends)
			daware_dispatch(SIGNALS);
	}
	return unused;
}

static void put_back(void)
{
	for (int number = 1; number < SIGNALS; number++) {
		watch(number, 0);
		atomic_store(&signals[number].came, 0);
		signals[number].call = NULL;
	}
	state.saves = 0;
	state.reload = NULL;
}

/* In a forked process there is one thread, and what it has of ours is its parent's. */
static void in_child(void)
{
	static const pthread_mutex_t unlocked = PTHREAD_MUTEX_INITIALIZER;

	daware_log_in_child();
	if (state.fd < 1)
		return;
	state.lock = unlocked;
	put_back();
	close(state.fd); /* its parent's; there is no other thread */
	state.fd = state.open = state.threaded = 0;
}

static int begin_thread(void)
{
	sigset_t all, before;
	int error;

	sigfillset(&all); /* the caller's threads get the signals */
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&state.thread, NULL, serve, NULL);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	state.threaded = error == 0;
	return -error;
}

/* An eventfd with nothing in it. */
static int begin_fd(void)
{
	uint64_t old;
	int fd, above;

	if (state.fd > 0)
		return read(state.fd, &old, sizeof old) < 0 && errno != EAGAIN ? -errno : 0;
	fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (fd < 0)
		return -errno;
	above = fcntl(fd, F_DUPFD_CLOEXEC, 3); /* standard ones are the caller's, even where they are closed */
	close(fd);
	if (above < 0)
		return -EMFILE;
	state.fd = above;
	return 0;
}

PUBLIC int daware_open(const char *ident, unsigned flags)
{
	static atomic_int forks; /* whether in_child() will be called */
	const char *left = getenv("DAWARE_SAVE_MS");
	int error;

	if (flags & ~DAWARE_LOOP)
		return -EINVAL;
	if (state.open)
		return -EALREADY;
	error = daware_log_open(ident != NULL ? ident : program_invocation_short_name);
	if (error == 0)
		error = begin_fd();
	if (error != 0)
		return error;
	state.left = left != NULL && atoi(left) > 0 ? atoi(left) : LEFT;
	state.ends = 0;
	if (!atomic_exchange(&forks, 1))
		pthread_atfork(NULL, NULL, in_child);
	state.open = 1;
	error = flags & DAWARE_LOOP ? 0 : begin_thread();
	if (error != 0)
		state.open = 0;
	else
		daware_announce(ident != NULL ? ident : program_invocation_short_name);
	return error;
}

PUBLIC void daware_close(void)
{
	static const uint64_t one = 1;

	if (!state.open)
		return;
	pthread_mutex_lock(&state.lock);
	put_back();
	pthread_mutex_unlock(&state.lock);
	state.ends = 1;
	if (state.threaded && write(state.fd, &one, sizeof one) == sizeof one)
		pthread_join(state.thread, NULL);
	state.threaded = 0;
	state.open = 0;
}

PUBLIC const char *daware_version(void)
{
	return DAWARE_VERSION;
}
