/* SPDX-License-Identifier: Apache-2.0 */
/** System containers: virtual machines, as dre-sys(8) has them. See <dre/dre.h> for what the functions return. */
#ifndef DRE_DRESYS_H
#define DRE_DRESYS_H

#include <dre/dre.h>

#ifdef __cplusplus
extern "C" {
#endif

/** A connection to one dre-sys --serve. Threads may share it: their calls wait for each other. */
typedef struct dre_sys dre_sys;

/** Make a handle; *options* may be NULL. The co-process begins with the first call. */
int dre_sys_open(const struct dre_options *options, dre_sys **handle);
/** End it; nobody may use it any more. NULL does nothing. */
void dre_sys_close(dre_sys *handle);
/** What the last failed call of this thread on this handle was told; never NULL, valid until this thread asks again. */
const char *dre_sys_strerror(dre_sys *handle);
/** Free a result. NULL does nothing. */
void dre_sys_free(void *result);

/**
 * Any call of the command: *argv*, ending with NULL, without the command's name. *rows* is what it prints with --json,
 * one JSON array; *rows* may be NULL.
 */
int dre_sys_call(dre_sys *handle, const char *const argv[], char **rows);

/** A new system; NULL and 0 are the defaults of the command. Lists end with NULL. */
struct dre_sys_spec {
	size_t size;
	const char *base;            /**< an image of dre-base, or a path */
	const char *ip;              /**< "10.0.0.5/24", "dhcp" or "none" */
	const char *memory;          /**< "1G" */
	const char *cpu;             /**< a limit, as in struct dre_limits */
	const char *const *ssh_key;  /**< files of public keys */
	int vcpus;
	int warm;                    /**< whether its first start goes on from a guest that was booted before */
	int autostart;
};
#define DRE_SYS_SPEC_INIT {sizeof(struct dre_sys_spec), NULL, NULL, NULL, NULL, NULL, 0, 0, 0}

/** How a system moves to another host. */
struct dre_sys_move {
	size_t size;
	const char *as;        /**< its name there; NULL: the same */
	int live;              /**< while it runs */
	int copy_storage;      /**< its disks, too, which are not on shared storage */
	int shared_storage;    /**< the host sees the same files: nothing is copied */
	int without_snapshots; /**< give up its snapshots and checkpoints */
	int tls;               /**< what QEMU sends of one that runs goes by TLS */
	int unencrypted;       /**< or it may cross the network in the clear */
};
#define DRE_SYS_MOVE_INIT {sizeof(struct dre_sys_move), NULL, 0, 0, 0, 0, 0, 0}

int dre_sys_create(dre_sys *handle, const char *name, const struct dre_sys_spec *spec);
/** *wait* seconds until its agent answers; 0: return when it has begun to boot. */
int dre_sys_start(dre_sys *handle, const char *name, double wait);
/** After *timeout* seconds it is killed; below 0: the command's default. */
int dre_sys_stop(dre_sys *handle, const char *name, double timeout);
/** A running one only with *force*. */
int dre_sys_destroy(dre_sys *handle, const char *name, int force);
int dre_sys_restart(dre_sys *handle, const char *name);
int dre_sys_freeze(dre_sys *handle, const char *name);
int dre_sys_thaw(dre_sys *handle, const char *name);
int dre_sys_isolate(dre_sys *handle, const char *name);
int dre_sys_rejoin(dre_sys *handle, const char *name);
int dre_sys_clone(dre_sys *handle, const char *name, const char *copy);
/** Run *argv*, which ends with NULL, with *length* octets of *input* as its standard input. */
int dre_sys_exec(dre_sys *handle, const char *name, const char *const argv[], const void *input, size_t length,
	struct dre_output **output);

/** All of them; the list ends with NULL. */
int dre_sys_list(dre_sys *handle, struct dre_container ***list);
int dre_sys_status(dre_sys *handle, const char *name, struct dre_container **status);
/** Rates are over *seconds*, for which it waits; with 0 they are not known. */
int dre_sys_resources(dre_sys *handle, const char *name, double seconds, struct dre_resources **resources);
/** All of *limits*, or none of them. */
int dre_sys_limit(dre_sys *handle, const char *name, const struct dre_limits *limits);

/** Of a stopped system. *tag* NULL: named by the time. */
int dre_sys_snapshot_save(dre_sys *handle, const char *name, const char *tag);
int dre_sys_snapshot_load(dre_sys *handle, const char *name, const char *tag);
int dre_sys_snapshot_delete(dre_sys *handle, const char *name, const char *tag);
int dre_sys_snapshot_list(dre_sys *handle, const char *name, struct dre_saved ***list);
/** Of a running system: memory and disk. */
int dre_sys_checkpoint_save(dre_sys *handle, const char *name, const char *tag);
int dre_sys_checkpoint_restart(dre_sys *handle, const char *name, const char *tag);
int dre_sys_checkpoint_delete(dre_sys *handle, const char *name, const char *tag);
int dre_sys_checkpoint_list(dre_sys *handle, const char *name, struct dre_saved ***list);
/** Back to a snapshot or checkpoint, NULL is the newest, and running. */
int dre_sys_undo(dre_sys *handle, const char *name, const char *tag);
/** Move it to *host*; *move* may be NULL. */
int dre_sys_migrate(dre_sys *handle, const char *name, const char *host, const struct dre_sys_move *move);

#ifdef __cplusplus
}
#endif
#endif
