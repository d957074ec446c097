// SPDX-License-Identifier: Apache-2.0
/* The life of a system: made, saved, booted, used, put back, removed. Needs root and an image. cc sys-life.c -ldresys */
#include <dre/dresys.h>
#include <stdio.h>
#include <stdlib.h>

static dre_sys *handle;

/* Ends the program where a call has failed, and says why. */
static void good(const char *what, int error)
{
	if (error == 0)
		return;
	fprintf(stderr, "%s: %s (%d)\n", what, dre_sys_strerror(handle), error);
	exit(1);
}

int main(int argc, char *argv[])
{
	const char *name = argc > 1 ? argv[1] : "example";
	const char *const kernel[] = {"uname", "-r", NULL};
	struct dre_options options = DRE_OPTIONS_INIT;
	struct dre_sys_spec spec = DRE_SYS_SPEC_INIT;
	struct dre_container *status, **list;
	struct dre_saved **tags;
	struct dre_output *output;

	options.config = getenv("DRE_CONFIG");
	options.program = getenv("DRE_SYS");
	if (dre_sys_open(&options, &handle) != 0)
		return 1;
	spec.base = argc > 2 ? argv[2] : NULL;
	spec.ip = "none";
	spec.memory = "512M";
	good("create", dre_sys_create(handle, name, &spec));
	good("snapshot", dre_sys_snapshot_save(handle, name, "good"));
	good("snapshots", dre_sys_snapshot_list(handle, name, &tags));
	for (struct dre_saved **tag = tags; *tag != NULL; tag++)
		printf("snapshot %s\n", (*tag)->tag);
	dre_sys_free(tags);

	good("start", dre_sys_start(handle, name, 600)); /* until its agent answers */
	good("exec", dre_sys_exec(handle, name, kernel, NULL, 0, &output));
	printf("it runs Linux %.*s", (int)output->out_length, output->out);
	dre_sys_free(output);

	good("undo", dre_sys_undo(handle, name, "good"));
	good("status", dre_sys_status(handle, name, &status));
	printf("after the undo it is %s, with %lld octets of memory\n", status->state, (long long)status->memory_limit);
	dre_sys_free(status);

	good("list", dre_sys_list(handle, &list));
	for (struct dre_container **one = list; *one != NULL; one++)
		printf("%s: %s\n", (*one)->name, (*one)->state);
	dre_sys_free(list);

	good("destroy", dre_sys_destroy(handle, name, 1));
	dre_sys_close(handle);
	return 0;
}
