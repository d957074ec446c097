// SPDX-License-Identifier: Apache-2.0
/* A real system led through its life by libdresys. argv: settings, dre-sys, an image, a name. Each failed check says so. */
#include <dre/dresys.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

static dre_sys *handle;
static int failures;

#define CHECK(true)                                                                                                    \
	do {                                                                                                           \
		if (!(true)) {                                                                                         \
			printf("%s:%d: not so: %s: %s\n", __FILE__, __LINE__, #true, dre_sys_strerror(handle));        \
			failures++;                                                                                    \
		}                                                                                                      \
	} while (0)

static int is(const char *name, const char *state)
{
	struct dre_container *one;
	int same = dre_sys_status(handle, name, &one) == 0 && strcmp(one->name, name) == 0 && strcmp(one->state, state) == 0;

	dre_sys_free(one);
	return same;
}

static int has_tag(int (*list)(dre_sys *, const char *, struct dre_saved ***), const char *name, const char *tag)
{
	struct dre_saved **tags;
	int found = 0;

	if (list(handle, name, &tags) == 0)
		for (struct dre_saved **at = tags; *at != NULL; at++)
			found += strcmp((*at)->tag, tag) == 0;
	dre_sys_free(tags);
	return found == 1;
}

int main(int argc, char *argv[])
{
	struct dre_options options = DRE_OPTIONS_INIT;
	struct dre_sys_spec spec = DRE_SYS_SPEC_INIT;
	struct dre_limits limits = DRE_LIMITS_INIT;
	struct dre_container **list;
	struct dre_resources *used;
	const char *name = argv[argc - 1];

	options.config = argv[1];
	options.program = argv[2];
	if (argc != 5 || dre_sys_open(&options, &handle) != 0)
		return 2;
	spec.base = argv[3];
	spec.memory = "64M";
	spec.ip = "none";
	CHECK(dre_sys_create(handle, name, &spec) == 0 && dre_sys_create(handle, name, &spec) == -ECANCELED);
	CHECK(is(name, "stopped"));
	CHECK(dre_sys_snapshot_save(handle, name, "good") == 0 && has_tag(dre_sys_snapshot_list, name, "good"));
	CHECK(dre_sys_start(handle, name, 0) == 0 && is(name, "running"));
	CHECK(dre_sys_freeze(handle, name) == 0 && is(name, "frozen"));
	CHECK(dre_sys_thaw(handle, name) == 0 && is(name, "running"));
	limits.cpu = "50";
	CHECK(dre_sys_limit(handle, name, &limits) == 0);
	CHECK(dre_sys_resources(handle, name, 0.2, &used) == 0 && used->memory > 0 && used->cpu >= 0 && used->cpu_limit == 50);
	dre_sys_free(used);
	CHECK(dre_sys_checkpoint_save(handle, name, "now") == 0 && has_tag(dre_sys_checkpoint_list, name, "now"));
	CHECK(dre_sys_checkpoint_restart(handle, name, "now") == 0 && is(name, "running"));
	CHECK(dre_sys_checkpoint_delete(handle, name, "now") == 0);
	CHECK(dre_sys_undo(handle, name, "good") == 0 && is(name, "running"));
	CHECK(dre_sys_destroy(handle, name, 0) == -ECANCELED && dre_sys_stop(handle, name, 0.1) == 0 && is(name, "stopped"));
	CHECK(dre_sys_list(handle, &list) == 0 && list[0] != NULL && strcmp(list[0]->name, name) == 0 && list[1] == NULL);
	dre_sys_free(list);
	CHECK(dre_sys_destroy(handle, name, 0) == 0 && dre_sys_destroy(handle, name, 0) == -ENOENT);
	dre_sys_close(handle);
	printf("%d failures\n", failures);
	return failures != 0;
}
