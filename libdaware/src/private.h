/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of libdaware know of each other. Not installed. */
#ifndef DAWARE_PRIVATE_H
#define DAWARE_PRIVATE_H

#include <daware.h>

#define PUBLIC __attribute__((visibility("default")))

#pragma GCC visibility push(hidden)

/* log.c */
int daware_log_open(const char *ident);
/* In a forked process: a thread that is not there may have had the lock. */
void daware_log_in_child(void);
/* Milliseconds by the monotonic clock. */
int64_t daware_now(void);

/* notify.c */
int daware_notify(const char *text);
/* Say that this process begins: who hears it has its number there from the kernel. See daware-pid(1), listen. */
void daware_announce(const char *ident);

#pragma GCC visibility pop
#endif
