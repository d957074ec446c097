// SPDX-License-Identifier: Apache-2.0
/*
 * Every call of libdreapp and libdresys to the real commands, with all that can be given, on what is not there: what the
 * library asks for is then refused for that, never as wrong usage. argv: settings, dre-app, dre-sys. Prints what failed
 * otherwise.
 */
#include <dre/dreapp.h>
#include <dre/dresys.h>
#include <errno.h>
#include <stdio.h>

static int failures;

#define ASK(kind, expected, call, ...)                                                                                 \
	do {                                                                                                           \
		int error_ = dre_##kind##_##call(kind, ##__VA_ARGS__);                                                 \
		if (error_ != (expected)) {                                                                            \
			printf("dre_%s_%s: %d: %s\n", #kind, #call, error_, dre_##kind##_strerror(kind));              \
			failures++;                                                                                    \
		}                                                                                                      \
	} while (0)

/* What apps and systems have in common. */
#define ASK_BOTH(kind, none)                                                                                           \
	do {                                                                                                           \
		ASK(kind, none, stop, "x", 1.5);                                                                       \
		ASK(kind, none, stop, "x", -1);                                                                        \
		ASK(kind, none, destroy, "x", 0);                                                                      \
		ASK(kind, none, destroy, "x", 1);                                                                      \
		ASK(kind, none, restart, "x");                                                                         \
		ASK(kind, none, freeze, "x");                                                                          \
		ASK(kind, none, thaw, "x");                                                                            \
		ASK(kind, none, isolate, "x");                                                                         \
		ASK(kind, none, rejoin, "x");                                                                          \
		ASK(kind, none, clone, "x", "y");                                                                      \
		ASK(kind, none, exec, "x", program, "input", 5, &output);                                              \
		ASK(kind, none, status, "x", &one);                                                                    \
		ASK(kind, none, resources, "x", 0, &used);                                                             \
		ASK(kind, none, resources, "x", 0.5, &used);                                                           \
		ASK(kind, none, snapshot_save, "x", NULL);                                                             \
		ASK(kind, none, snapshot_save, "x", "tag");                                                            \
		ASK(kind, none, snapshot_load, "x", NULL);                                                             \
		ASK(kind, none, snapshot_delete, "x", "tag");                                                          \
		ASK(kind, none, snapshot_list, "x", &tags);                                                            \
		ASK(kind, none, checkpoint_save, "x", NULL);                                                           \
		ASK(kind, none, checkpoint_restart, "x", NULL);                                                        \
		ASK(kind, none, checkpoint_delete, "x", "tag");                                                        \
		ASK(kind, none, checkpoint_list, "x", &tags);                                                          \
		ASK(kind, none, undo, "x", NULL);                                                                      \
		ASK(kind, none, undo, "x", "tag");                                                                     \
	} while (0)

int main(int argc, char *argv[])
{
	const char *const program[] = {"--json", "-x", NULL}, *const some[] = {"A=b", "C=--d", NULL};
	const char *const binds[] = {"/etc:/mnt:ro", NULL}, *const keys[] = {"/nowhere/key.pub", NULL};
	struct dre_limits limits = {.size = sizeof limits, .cpu = "50", .cpus = "0", .memory = "64M", .io = "1M", .net = "1M"};
	struct dre_app_spec app_spec = {.size = sizeof app_spec, .base = "/nowhere", .ip = "none", .command = program,
		.env = some, .bind = binds, .cpu = "50", .memory = "64M", .pids = "100", .sshd_port = 2222, .autostart = 1};
	struct dre_sys_spec sys_spec = {.size = sizeof sys_spec, .base = "/nowhere", .ip = "none", .memory = "256M",
		.cpu = "50", .ssh_key = keys, .vcpus = 1, .warm = 1, .autostart = 1};
	struct dre_sys_move move = {.size = sizeof move, .as = "y", .live = 1, .copy_storage = 1, .tls = 1};
	struct dre_options options = DRE_OPTIONS_INIT;
	struct dre_container *one, **list;
	struct dre_resources *used, **groups;
	struct dre_saved **tags;
	struct dre_output *output;
	dre_app *app;
	dre_sys *sys;

	if (argc != 4)
		return 2;
	options.config = argv[1];
	options.program = argv[2];
	if (dre_app_open(&options, &app) != 0)
		return 1;
	ASK_BOTH(app, -ENOENT);
	ASK(app, -ENOENT, start, "x");
	ASK(app, -ENOENT, create, "x", &app_spec);
	ASK(app, -ENOENT, cgroup_delete, "x");
	ASK(app, -ENOENT, cgroup_get, "x", 0.5, &used);
	ASK(app, -ENOENT, cgroup_add, "x", 1);
	ASK(app, 0, list, &list);
	dre_app_free(list);
	ASK(app, 0, cgroup_list, &groups);
	dre_app_free(groups);
	limits.pids = "100";
	ASK(app, -ENOENT, limit, "x", &limits);
	limits.net = NULL;
	ASK(app, -ENOENT, cgroup_limit, "x", &limits);
	dre_app_close(app);

	options.program = argv[3];
	if (dre_sys_open(&options, &sys) != 0)
		return 1;
	ASK_BOTH(sys, -EOPNOTSUPP); /* there is no libvirt where the settings say */
	ASK(sys, -EOPNOTSUPP, start, "x", 0);
	ASK(sys, -EOPNOTSUPP, start, "x", 1.5);
	ASK(sys, -EOPNOTSUPP, list, &list);
	ASK(sys, -EOPNOTSUPP, migrate, "x", "host", &move);
	move = (struct dre_sys_move){.size = sizeof move, .live = 1, .shared_storage = 1, .unencrypted = 1};
	ASK(sys, -EOPNOTSUPP, migrate, "x", "host", &move);
	move = (struct dre_sys_move){.size = sizeof move, .without_snapshots = 1};
	ASK(sys, -EOPNOTSUPP, migrate, "x", "host", &move);
	move.size = offsetof(struct dre_sys_move, copy_storage); /* of a program that knows no more */
	move.unencrypted = move.tls = 1;
	ASK(sys, -EOPNOTSUPP, migrate, "x", "host", &move);
	sys_spec.ssh_key = NULL;
	ASK(sys, -EOPNOTSUPP, create, "x", &sys_spec);
	limits.pids = NULL;
	ASK(sys, -EOPNOTSUPP, limit, "x", &limits);
	dre_sys_close(sys);
	printf("%d failures\n", failures);
	return failures != 0;
}
