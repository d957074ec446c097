// SPDX-License-Identifier: Apache-2.0
/* The life of an app: made, limited, saved, run, damaged, put back, removed. Needs root. cc app-life.c -ldreapp */
#include <dre/dreapp.h>
#include <stdio.h>
#include <stdlib.h>

static dre_app *handle;

/* Ends the program where a call has failed, and says why. */
static void good(const char *what, int error)
{
	if (error == 0)
		return;
	fprintf(stderr, "%s: %s (%d)\n", what, dre_app_strerror(handle), error);
	exit(1);
}

int main(int argc, char *argv[])
{
	const char *name = argc > 1 ? argv[1] : "example";
	const char *const command[] = {"sleep", "infinity", NULL};
	const char *const damage[] = {"sh", "-c", "echo damaged >/etc/state; cat /etc/state", NULL};
	const char *const look[] = {"cat", "/etc/state", NULL};
	struct dre_options options = DRE_OPTIONS_INIT;
	struct dre_app_spec spec = DRE_APP_SPEC_INIT;
	struct dre_limits limits = DRE_LIMITS_INIT;
	struct dre_container *status;
	struct dre_resources *used;
	struct dre_output *output;

	options.config = getenv("DRE_CONFIG");
	options.program = getenv("DRE_APP");
	if (dre_app_open(&options, &handle) != 0)
		return 1;
	spec.ip = "none";
	spec.command = command;
	good("create", dre_app_create(handle, name, &spec));
	good("snapshot", dre_app_snapshot_save(handle, name, "good"));
	good("start", dre_app_start(handle, name));
	limits.cpu = "50";
	limits.memory = "100M";
	good("limit", dre_app_limit(handle, name, &limits));

	good("exec", dre_app_exec(handle, name, damage, NULL, 0, &output));
	printf("it says %.*s", (int)output->out_length, output->out);
	dre_app_free(output);

	good("undo", dre_app_undo(handle, name, "good"));
	good("exec", dre_app_exec(handle, name, look, NULL, 0, &output));
	printf("after the undo: exit status %d, %s", output->status, output->err);
	dre_app_free(output);

	good("status", dre_app_status(handle, name, &status));
	good("resources", dre_app_resources(handle, name, 0.2, &used));
	printf("%s is %s, %lld processes, %.0f%% of a processor\n", status->name, status->state,
		(long long)status->pids, used->cpu);
	dre_app_free(used);
	dre_app_free(status);

	good("destroy", dre_app_destroy(handle, name, 1));
	if (dre_app_status(handle, name, &status) == 0)
		return 1;
	printf("%s\n", dre_app_strerror(handle));
	dre_app_close(handle);
	return 0;
}
