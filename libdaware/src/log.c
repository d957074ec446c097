// SPDX-License-Identifier: Apache-2.0
/*
 * Records in the format of RFC 5424 to the log's socket, /dev/log or $DAWARE_LOG.
 *
 * A record is formatted on the stack and sent whole. Where the log does not take it, a call waits 20 ms, and all calls
 * together 200 ms of a second; then the record is dropped and counted, and the next that gets through tells how many
 * were. The socket is never closed or replaced, only connected anew: no thread sees another's number in its place.
 */
#define _GNU_SOURCE
#include "private.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
	LONGEST = 8192, /* octets of a record; what receivers take without being told */
	VALUES = 4096,  /* of them for keys and values */
	ONE_WAIT = 20,  /* milliseconds */
	ALL_WAITS = 200,
};

/* 32473 is the number for examples of RFC 5612: the project has none of its own. */
#define ELEMENT "dre@32473"

static struct {
	_Atomic int fd; /* less than 1: not open */
	char ident[49];
	char host[65];
	struct sockaddr_un log;
	socklen_t log_length;
	_Atomic uint64_t dropped; /* all */
	_Atomic uint64_t told;    /* of them, in records that got through */
	pthread_mutex_t lock;     /* of what follows */
	int64_t second;           /* in which was waited */
	int waited;               /* so many milliseconds */
} state = {.lock = PTHREAD_MUTEX_INITIALIZER};

int64_t daware_now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (int64_t)time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

/* --- a record --- */

/* Text being put together; what does not fit is counted. */
struct text {
	char *octets;
	size_t length;
	size_t room;
	size_t cut;
};

static void put(struct text *text, const char *octets, size_t length)
{
	if (text->cut > 0 || text->room - text->length < length) {
		text->cut += length;
		return;
	}
	memcpy(text->octets + text->length, octets, length);
	text->length += length;
}

/* Octets of the character at *from*, which has *left*; 0 where it is not UTF-8. */
static size_t character(const unsigned char *from, size_t left)
{
	size_t length = from[0] < 0x80 ? 1 : from[0] >> 5 == 6 ? 2 : from[0] >> 4 == 14 ? 3 : from[0] >> 3 == 30 ? 4 : 0;
	uint32_t value = length == 1 ? from[0] : (uint32_t)(from[0] & (0xff >> (length + 1)));
	static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};

	if (length == 0 || length > left)
		return 0;
	for (size_t at = 1; at < length; at++) {
		if (from[at] >> 6 != 2)
			return 0;
		value = value << 6 | (from[at] & 63);
	}
	return value < least[length] || value > 0x10ffff || (value >= 0xd800 && value < 0xe000) ? 0 : length;
}

/* *from* as UTF-8 on one line: other octets as U+FFFD, control characters as #012, those of *escaped* after a \. */
static void put_clean(struct text *text, const char *from, size_t left, const char *escaped)
{
	while (left > 0) {
		size_t length = character((const unsigned char *)from, left);
		char shown[8];

		if (text->cut > 0) { /* it is full: what is left is only counted */
			text->cut += left;
			return;
		}
		if (length == 0) {
			put(text, "\xef\xbf\xbd", 3);
			length = 1;
		} else if ((unsigned char)*from < 32 || *from == 127) {
			snprintf(shown, sizeof shown, "#%03o", (unsigned)(unsigned char)*from);
			put(text, shown, 4);
		} else if (length == 1 && strchr(escaped, *from) != NULL) {
			shown[0] = '\\';
			shown[1] = *from;
			put(text, shown, 2);
		} else {
			put(text, from, length);
		}
		from += length;
		left -= length;
	}
}

/* A name as RFC 5424 has them: printable, without blanks; "-" for none. */
static void put_name(struct text *text, const char *name, size_t most)
{
	size_t length = 0;

	for (; name != NULL && name[length] != '\0' && length < most; length++) {
		char letter = name[length];

		if (letter <= ' ' || letter > '~' || strchr("=]\"", letter) != NULL)
			letter = '_';
		put(text, &letter, 1);
	}
	if (length == 0)
		put(text, "-", 1);
}

static void put_value(struct text *text, const char *key, const char *value)
{
	size_t before = text->length;

	put(text, " ", 1);
	put_name(text, key, 32);
	put(text, "=\"", 2);
	put_clean(text, value, strlen(value), "\"\\]");
	put(text, "\"", 1);
	if (text->cut > 0) /* a value is there as a whole or not at all */
		text->length = before;
}

static void put_number(struct text *text, const char *key, uint64_t number)
{
	char digits[24];

	snprintf(digits, sizeof digits, "%llu", (unsigned long long)number);
	put_value(text, key, digits);
}

/*
 * Year, month and day of a number of days since 1970: years begin with March, and 146097 days are 400 of them. Not
 * gmtime_r(3), whose lock glibc does not free in a process that was forked while another thread had it.
 */
static void date_of(int64_t days, int *year, int *month, int *day)
{
	int64_t since = days + 719468, era = since / 146097, rest = since % 146097;
	int64_t years = (rest - rest / 1460 + rest / 36524 - rest / 146096) / 365;
	int64_t within = rest - (365 * years + years / 4 - years / 100), from_march = (5 * within + 2) / 153;

	*day = (int)(within - (153 * from_march + 2) / 5 + 1);
	*month = (int)(from_march < 10 ? from_march + 3 : from_march - 9);
	*year = (int)(years + era * 400 + (*month <= 2));
}

static void put_head(struct text *text, int priority, const char *event)
{
	char head[160];
	struct timespec time;
	int length, year, month, day, second;

	clock_gettime(CLOCK_REALTIME, &time);
	date_of(time.tv_sec / 86400, &year, &month, &day);
	second = (int)(time.tv_sec % 86400);
	if ((priority & LOG_FACMASK) == 0)
		priority |= LOG_DAEMON;
	length = snprintf(head, sizeof head, "<%d>1 %04d-%02d-%02dT%02d:%02d:%02d.%06ldZ %s %s %d ",
		priority & (LOG_FACMASK | LOG_PRIMASK), year, month, day, second / 3600, second / 60 % 60, second % 60,
		time.tv_nsec / 1000, state.host, state.ident, (int)getpid());
	put(text, head, (size_t)length);
	put_name(text, event, 32);
	put(text, " [" ELEMENT, sizeof " [" ELEMENT - 1);
}

/* --- the socket --- */

/* How many milliseconds a call may wait; they are taken from those of this second. */
static int may_wait(void)
{
	int64_t second = daware_now() / 1000;
	int most;

	pthread_mutex_lock(&state.lock);
	if (state.second != second) {
		state.second = second;
		state.waited = 0;
	}
	most = ALL_WAITS - state.waited < ONE_WAIT ? ALL_WAITS - state.waited : ONE_WAIT;
	state.waited += most;
	pthread_mutex_unlock(&state.lock);
	return most;
}

static int send_record(const struct text *text)
{
	int fd = state.fd, waited = 0;

	for (int tries = 0; tries < 4; tries++) {
		struct pollfd ready = {.fd = fd, .events = POLLOUT};

		if (send(fd, text->octets, text->length, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0)
			return 0;
		if (errno == EAGAIN || errno == ENOBUFS) {
			int most = waited ? 0 : may_wait();

			if (most <= 0 || poll(&ready, 1, most) < 1)
				return -EAGAIN;
			waited = 1;
		} else if (errno == ECONNREFUSED || errno == ENOTCONN || errno == ECONNRESET || errno == EPIPE) {
			if (connect(fd, (struct sockaddr *)&state.log, state.log_length) != 0)
				return -errno;
		} else if (errno != EINTR) {
			return -errno;
		}
	}
	return -EAGAIN;
}

/* End the record, *text*, with what was lost, and *message*, of which *more* octets are not even here; send it. */
static int finish(struct text *text, const char *message, size_t length, size_t more)
{
	uint64_t dropped = state.dropped, told = state.told;
	char body[LONGEST];
	struct text clean = {.octets = body, .room = LONGEST - 128 - text->length};
	size_t values = text->cut;
	int error;

	put_clean(&clean, message, length, "");
	text->cut = 0;
	text->room = LONGEST;
	if (values > 0)
		put_number(text, "values-cut", values);
	if (clean.cut + more > 0)
		put_number(text, "cut", clean.cut + more);
	if (dropped > told)
		put_number(text, "dropped", dropped - told);
	put(text, "] ", 2);
	put(text, body, clean.length);
	error = send_record(text);
	if (error != 0)
		state.dropped++;
	else if (dropped > told) /* two at a time may tell the same, none is left untold */
		atomic_compare_exchange_strong(&state.told, &told, dropped);
	return error;
}

static int log_format(int priority, const char *event, const char *place, const char *format, va_list words)
{
	char octets[LONGEST], message[LONGEST];
	struct text text = {.octets = octets, .room = VALUES};
	int before = errno, error, length;

	if (format == NULL)
		return -EINVAL;
	if (state.fd < 1)
		return -ENOTCONN;
	errno = before; /* for %m */
	length = vsnprintf(message, sizeof message, format, words);
	if (length < 0) {
		error = -errno;
	} else {
		size_t here = (size_t)length < sizeof message ? (size_t)length : sizeof message - 1;

		put_head(&text, priority, event);
		if (place != NULL)
			put_value(&text, "place", place);
		error = finish(&text, message, here, (size_t)length - here);
	}
	errno = before;
	return error;
}

PUBLIC int daware_log(int priority, const char *event, const char *format, ...)
{
	va_list words;
	int error;

	va_start(words, format);
	error = log_format(priority, event, NULL, format, words);
	va_end(words);
	return error;
}

PUBLIC int daware_log_at(int priority, const char *event, const char *place, const char *format, ...)
{
	va_list words;
	int error;

	va_start(words, format);
	error = log_format(priority, event, place, format, words);
	va_end(words);
	return error;
}

/* A record with the keys and values that *next* gives, in turn, until there is none. */
static int log_pairs(int priority, const char *event, const char *message, const char *(*next)(void *from), void *from)
{
	char octets[LONGEST];
	struct text text = {.octets = octets, .room = VALUES};
	int before = errno, error;
	const char *key;

	if (state.fd < 1)
		return -ENOTCONN;
	put_head(&text, priority, event);
	while ((key = next(from)) != NULL) {
		const char *value = next(from);

		put_value(&text, key, value != NULL ? value : "");
	}
	error = finish(&text, message != NULL ? message : "", message != NULL ? strlen(message) : 0, 0);
	errno = before;
	return error;
}

struct words {
	va_list list;
};

static const char *next_word(void *from)
{
	return va_arg(((struct words *)from)->list, const char *);
}

static const char *next_pair(void *from)
{
	return *(*(const char *const **)from)++;
}

PUBLIC int daware_logkv(int priority, const char *event, const char *message, ...)
{
	struct words words;
	int error;

	va_start(words.list, message);
	error = log_pairs(priority, event, message, next_word, &words);
	va_end(words.list);
	return error;
}

PUBLIC int daware_log_pairs(int priority, const char *event, const char *message, const char *const pairs[])
{
	return pairs != NULL ? log_pairs(priority, event, message, next_pair, &pairs) : -EINVAL;
}

PUBLIC int daware_dropped(uint64_t *count)
{
	if (count == NULL)
		return -EINVAL;
	*count = state.dropped;
	return 0;
}

PUBLIC int daware_due(int64_t *next, int64_t seconds)
{
	int64_t now = daware_now() / 1000 + 1, due = __atomic_load_n(next, __ATOMIC_RELAXED);
	int64_t after = seconds > INT64_MAX - now ? INT64_MAX : now + seconds;

	return now >= due && __atomic_compare_exchange_n(next, &due, after, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

/* --- begin --- */

void daware_log_in_child(void)
{
	static const pthread_mutex_t unlocked = PTHREAD_MUTEX_INITIALIZER;

	state.lock = unlocked;
}

int daware_log_open(const char *ident)
{
	const char *path = secure_getenv("DAWARE_LOG");
	struct text name = {.octets = state.ident, .room = sizeof state.ident - 1};
	char host[64 + 1] = "";
	struct text machine = {.octets = state.host, .room = sizeof state.host - 1};
	int fd;

	if (path == NULL)
		path = "/dev/log";
	if (strlen(path) >= sizeof state.log.sun_path)
		return -ENAMETOOLONG;
	put_name(&name, ident, sizeof state.ident - 1);
	state.ident[name.length] = '\0';
	gethostname(host, sizeof host - 1);
	put_name(&machine, host, sizeof state.host - 1);
	state.host[machine.length] = '\0';
	state.log.sun_family = AF_UNIX;
	strcpy(state.log.sun_path, path);
	state.log_length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path) + 1);
	if (state.fd > 0)
		return 0; /* of a time before */
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	if (fd < 3) { /* the caller has closed its standard descriptors, and may open them again */
		int above = fcntl(fd, F_DUPFD_CLOEXEC, 3);

		close(fd);
		if (above < 0)
			return -EMFILE;
		fd = above;
	}
	connect(fd, (struct sockaddr *)&state.log, state.log_length); /* or with the first record */
	state.fd = fd;
	return 0;
}
