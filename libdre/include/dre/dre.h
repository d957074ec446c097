/* SPDX-License-Identifier: Apache-2.0 */
/**
 * What libdreapp and libdresys have in common.
 *
 * A function returns 0, or a negative errno(3):
 *   -EINVAL      an argument or a setting is wrong
 *   -ENOENT      there is no such container, snapshot, checkpoint or group
 *   -EPERM       not permitted
 *   -ETIMEDOUT   it did not end in time
 *   -EOPNOTSUPP  a program, a service or a device that it needs is missing
 *   -EPIPE       the co-process ended; the next call begins another
 *   -EPROTO      the co-process answered something else than it should
 *   -ECANCELED   it failed for another reason, which dre_app_strerror() and dre_sys_strerror() say
 *   -ENOMEM, -EMFILE and others of the system's calls
 * Results come through the last parameters, which are set to NULL where a call fails.
 *
 * A struct that the caller fills begins with its size: use its initializer, and what a later version adds has its
 * default. A struct that the library fills may grow at its end; it is one block of memory with all that it points to,
 * and dre_app_free() or dre_sys_free() of the first pointer frees all of it.
 */
#ifndef DRE_DRE_H
#define DRE_DRE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/** How to reach the command; all of it has defaults. */
struct dre_options {
	size_t size;
	const char *config;  /**< settings; NULL: /etc/dre.conf */
	const char *program; /**< absolute path of the command; NULL: the installed one */
	double timeout;      /**< seconds that one call may take; 0: 600 */
};
#define DRE_OPTIONS_INIT {sizeof(struct dre_options), NULL, NULL, 0}

/** One container; what is not known, or not bounded, is NULL, -1 or (for cpu) a negative number. */
struct dre_container {
	const char *name;
	const char *state;            /**< running stopped frozen starting stopping partial crashed */
	const char *const *ip;        /**< addresses; ends with NULL */
	const char *const *snapshots; /**< tags; ends with NULL */
	const char *created;          /**< 2026-11-23T08:00:00.123Z */
	const char *base;
	int64_t pid;                  /**< of its first process, as the host has it */
	double cpu;                   /**< percent of one processor */
	double cpu_limit;
	int64_t memory;               /**< octets */
	int64_t memory_limit;
	int64_t pids;                 /**< number of processes */
};

/** What a container or a group uses, and may use; what is not known or not bounded is negative. */
struct dre_resources {
	const char *name;
	double cpu;       /**< percent of one processor; a rate, as those below */
	double cpu_limit;
	int64_t memory;   /**< octets */
	int64_t memory_limit;
	int64_t pids;
	int64_t pids_limit;
	double io_read;   /**< octets a second */
	double io_write;
	double net_rx;
	double net_tx;
	int64_t oom_kills;
};

/** Limits, as the command takes them; NULL leaves one as it is, "none" lifts it. */
struct dre_limits {
	size_t size;
	const char *cpu;    /**< percent of one processor: "50", "150" */
	const char *cpus;   /**< processors that may be used: "0-2,5" */
	const char *memory; /**< "512M"; without a unit octets */
	const char *pids;   /**< number of processes; apps and groups only */
	const char *io;     /**< octets a second: "10M" */
	const char *net;    /**< the same; not of groups */
};
#define DRE_LIMITS_INIT {sizeof(struct dre_limits), NULL, NULL, NULL, NULL, NULL, NULL}

/** A snapshot or a checkpoint. */
struct dre_saved {
	const char *tag;
	const char *created;
	const char *description;
	int64_t bytes;
};

/** What a program printed that ran in a container, and how it ended. */
struct dre_output {
	int status;         /**< its exit status, or 128 + N where signal N ended it */
	int truncated;      /**< whether more was printed than is here */
	const char *out;    /**< out_length octets, and a NUL that is not counted */
	size_t out_length;
	const char *err;
	size_t err_length;
};

#ifdef __cplusplus
}
#endif
#endif
