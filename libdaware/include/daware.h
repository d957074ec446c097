/* SPDX-License-Identifier: Apache-2.0 */
/**
 * libdaware: for programs that log in one format, save before they end, and can be told apart inside and outside of
 * their container.
 *
 * A function returns 0, or a negative errno(3); results come through the last parameters. The library never prints and
 * never ends the program, but for a signal whose default action does.
 */
#ifndef DAWARE_H
#define DAWARE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <syslog.h>

#ifdef __cplusplus
extern "C" {
#endif

/** No thread of the library's: the caller polls daware_fd() and calls daware_dispatch(). */
#define DAWARE_LOOP 1u
/** How daware_terminate() ended a process. */
#define DAWARE_ENDED 0
#define DAWARE_KILLED 1

/** Begin: *ident* names the program in the log; NULL: the name it was started by. Once; -EALREADY the second time. */
int daware_open(const char *ident, unsigned flags);
/** Put the signals back to what they were, and end. Not from a callback. */
void daware_close(void);
const char *daware_version(void);

/** Log one record of *event*, a short name; *priority* as for syslog(3). */
int daware_log(int priority, const char *event, const char *format, ...) __attribute__((format(printf, 3, 4)));
/** The same with keys and values in turn, all texts, and NULL at the end. */
int daware_logkv(int priority, const char *event, const char *message, ...) __attribute__((sentinel));
/** The same with *pairs*, an array of them that ends with NULL. */
int daware_log_pairs(int priority, const char *event, const char *message, const char *const pairs[]);
/** How many records were lost so far, since the log took none. */
int daware_dropped(uint64_t *count);

/** Have *call* called after signal *number*; *from* is its sender or 0. Without *call* it is as it was before. */
int daware_on_signal(int number, void (*call)(int number, pid_t from, void *argument), void *argument);
/**
 * Have *call* called before the program ends by SIGTERM or SIGINT, the lowest *priority* first; it returns 0 or a
 * negative errno. *number* is the signal, *left* the milliseconds that are left for all. Then the signal acts, unless
 * daware_on_signal() has a call for it.
 */
int daware_on_save(int priority, int (*call)(int number, int left, void *argument), void *argument);
/** Have *call* called after SIGHUP. */
int daware_on_reload(void (*call)(void *argument), void *argument);

/** What service managers want to know, by the protocol of sd_notify(3); 0 where nobody does. */
int daware_ready(void);
int daware_status(const char *format, ...) __attribute__((format(printf, 1, 2)));
int daware_heartbeat(void);

/** With DAWARE_LOOP: readable when daware_dispatch() has something to do. */
int daware_fd(int *fd);
/** Do up to *most* calls; how many were done. */
int daware_dispatch(int most);

/** Write a file so that after a crash it has either its old contents or these. */
int daware_save_file(const char *path, const void *octets, size_t length);

/** The number that process *inner* of the PID namespace of process *reference* has here. -ESRCH: there is none. */
int daware_pid_outside(pid_t inner, pid_t reference, pid_t *outer);
/** The number that process *outer* has in the PID namespace of process *reference*. */
int daware_pid_inside(pid_t outer, pid_t reference, pid_t *inner);
/** SIGTERM, and SIGKILL where it has not ended after *milliseconds*; *how* may be NULL. */
int daware_terminate(pid_t outer, int milliseconds, int *how);

#define DAWARE_TEXT_(text) #text
#define DAWARE_TEXT(text) DAWARE_TEXT_(text)
/** Log with the place in the source. */
#define DAWARE_LOG(priority, event, ...)                                                                               \
	daware_log_at(priority, event, __FILE__ ":" DAWARE_TEXT(__LINE__), __VA_ARGS__)
#define DAWARE_ERR(event, ...) DAWARE_LOG(LOG_ERR, event, __VA_ARGS__)
#define DAWARE_WARN(event, ...) DAWARE_LOG(LOG_WARNING, event, __VA_ARGS__)
#define DAWARE_NOTICE(event, ...) DAWARE_LOG(LOG_NOTICE, event, __VA_ARGS__)
#define DAWARE_INFO(event, ...) DAWARE_LOG(LOG_INFO, event, __VA_ARGS__)
#define DAWARE_DEBUG(event, ...) DAWARE_LOG(LOG_DEBUG, event, __VA_ARGS__)
/** Do *statement* only the first time, or not again within *seconds*. */
#define DAWARE_ONCE(statement) DAWARE_EVERY(INT64_MAX, statement)
#define DAWARE_EVERY(seconds, statement)                                                                               \
	do {                                                                                                           \
		static int64_t daware_next_;                                                                           \
		if (daware_due(&daware_next_, (seconds)))                                                              \
			statement;                                                                                     \
	} while (0)
/** Behind the macros. */
int daware_log_at(int priority, const char *event, const char *place, const char *format, ...)
	__attribute__((format(printf, 4, 5)));
int daware_due(int64_t *next, int64_t seconds);

#ifdef __cplusplus
}
#endif
#endif
