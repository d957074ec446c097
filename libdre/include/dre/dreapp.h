/* SPDX-License-Identifier: Apache-2.0 */
/** Application containers: apps, as dre-app(8) has them. See <dre/dre.h> for what the functions return. */
#ifndef DRE_DREAPP_H
#define DRE_DREAPP_H

#include <dre/dre.h>

#ifdef __cplusplus
extern "C" {
#endif

/** A connection to one dre-app --serve. Threads may share it: their calls wait for each other. */
typedef struct dre_app dre_app;

/** Make a handle; *options* may be NULL. The co-process begins with the first call. */
int dre_app_open(const struct dre_options *options, dre_app **handle);
/** End it; nobody may use it any more. NULL does nothing. */
void dre_app_close(dre_app *handle);
/** What the last failed call of this thread on this handle was told; never NULL, valid until this thread asks again. */
const char *dre_app_strerror(dre_app *handle);
/** Free a result. NULL does nothing. */
void dre_app_free(void *result);

/**
 * Any call of the command: *argv*, ending with NULL, without the command's name. *rows* is what it prints with --json,
 * one JSON array; *rows* may be NULL.
 */
int dre_app_call(dre_app *handle, const char *const argv[], char **rows);

/** A new app; NULL is the default of the command. Lists end with NULL. */
struct dre_app_spec {
	size_t size;
	const char *base;            /**< "host", or a tree of dre-base */
	const char *ip;              /**< "10.0.0.5/24", "dhcp" or "none" */
	const char *const *command;  /**< the program that is its service */
	const char *const *env;      /**< "KEY=VALUE" */
	const char *const *bind;     /**< "SOURCE:TARGET" or "SOURCE:TARGET:ro" */
	const char *cpu;             /**< limits, as in struct dre_limits */
	const char *memory;
	const char *pids;
	int sshd_port;               /**< 0: none */
	int autostart;
};
#define DRE_APP_SPEC_INIT {sizeof(struct dre_app_spec), NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0, 0}

int dre_app_create(dre_app *handle, const char *name, const struct dre_app_spec *spec);
int dre_app_start(dre_app *handle, const char *name);
/** After *timeout* seconds it is killed; below 0: the command's default. */
int dre_app_stop(dre_app *handle, const char *name, double timeout);
/** A running one only with *force*. */
int dre_app_destroy(dre_app *handle, const char *name, int force);
int dre_app_restart(dre_app *handle, const char *name);
int dre_app_freeze(dre_app *handle, const char *name);
int dre_app_thaw(dre_app *handle, const char *name);
int dre_app_isolate(dre_app *handle, const char *name);
int dre_app_rejoin(dre_app *handle, const char *name);
int dre_app_clone(dre_app *handle, const char *name, const char *copy);
/** Run *argv*, which ends with NULL, with *length* octets of *input* as its standard input. */
int dre_app_exec(dre_app *handle, const char *name, const char *const argv[], const void *input, size_t length,
	struct dre_output **output);

/** All of them; the list ends with NULL. */
int dre_app_list(dre_app *handle, struct dre_container ***list);
int dre_app_status(dre_app *handle, const char *name, struct dre_container **status);
/** Rates are over *seconds*, for which it waits; with 0 they are not known. */
int dre_app_resources(dre_app *handle, const char *name, double seconds, struct dre_resources **resources);
/** All of *limits*, or none of them. */
int dre_app_limit(dre_app *handle, const char *name, const struct dre_limits *limits);

/** Of a stopped app. *tag* NULL: named by the time. */
int dre_app_snapshot_save(dre_app *handle, const char *name, const char *tag);
int dre_app_snapshot_load(dre_app *handle, const char *name, const char *tag);
int dre_app_snapshot_delete(dre_app *handle, const char *name, const char *tag);
int dre_app_snapshot_list(dre_app *handle, const char *name, struct dre_saved ***list);
/** Of a running app: memory and disk. */
int dre_app_checkpoint_save(dre_app *handle, const char *name, const char *tag);
int dre_app_checkpoint_restart(dre_app *handle, const char *name, const char *tag);
int dre_app_checkpoint_delete(dre_app *handle, const char *name, const char *tag);
int dre_app_checkpoint_list(dre_app *handle, const char *name, struct dre_saved ***list);
/** Back to a snapshot, NULL is the newest, and running. */
int dre_app_undo(dre_app *handle, const char *name, const char *tag);

/** Groups of processes without a container. *limits* may be NULL. */
int dre_app_cgroup_create(dre_app *handle, const char *group, const struct dre_limits *limits);
int dre_app_cgroup_delete(dre_app *handle, const char *group);
int dre_app_cgroup_limit(dre_app *handle, const char *group, const struct dre_limits *limits);
int dre_app_cgroup_get(dre_app *handle, const char *group, double seconds, struct dre_resources **resources);
int dre_app_cgroup_list(dre_app *handle, struct dre_resources ***list);
int dre_app_cgroup_add(dre_app *handle, const char *group, int64_t pid);

#ifdef __cplusplus
}
#endif
#endif
