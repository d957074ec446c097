// SPDX-License-Identifier: Apache-2.0
/* libdreapp: see <dre/dreapp.h>. */
#include <dre/dreapp.h>

#define KIND dre_app
#define PROGRAM "/usr/sbin/dre-app"
#include "kind.h"

PUBLIC int dre_app_create(dre_app *handle, const char *name, const struct dre_app_spec *spec)
{
	struct dre_app_spec given = DRE_APP_SPEC_INIT;
	struct dre_call call = about(handle, "create", name);
	char port[16];

	if (spec != NULL)
		memcpy(&given, spec, spec->size < sizeof given ? spec->size : sizeof given);
	dre_option(&call, "base", given.base);
	dre_option(&call, "ip", given.ip);
	dre_options_of(&call, "env", given.env);
	dre_options_of(&call, "bind", given.bind);
	dre_option(&call, "cpu", given.cpu);
	dre_option(&call, "memory", given.memory);
	dre_option(&call, "pids", given.pids);
	if (given.sshd_port != 0) {
		snprintf(port, sizeof port, "%d", given.sshd_port);
		dre_option(&call, "sshd-port", port);
	}
	if (given.autostart)
		dre_word(&call, "--autostart");
	if (given.command != NULL && *given.command != NULL) {
		dre_word(&call, "--");
		for (; *given.command != NULL; given.command++)
			dre_word(&call, *given.command);
	}
	return dre_done(&call);
}

PUBLIC int dre_app_start(dre_app *handle, const char *name)
{
	return simple(handle, "start", name);
}

/* --- groups of processes --- */

static struct dre_call group(dre_app *handle, const char *verb, const char *name)
{
	struct dre_call call = dre_call_of(handle, "cgroup");

	dre_word(&call, verb);
	dre_place(&call, "the name of the group", name);
	return call;
}

PUBLIC int dre_app_cgroup_create(dre_app *handle, const char *name, const struct dre_limits *limits)
{
	struct dre_call call = group(handle, "create", name);

	dre_limits_of(&call, limits);
	return dre_done(&call);
}

PUBLIC int dre_app_cgroup_delete(dre_app *handle, const char *name)
{
	struct dre_call call = group(handle, "delete", name);

	return dre_done(&call);
}

PUBLIC int dre_app_cgroup_limit(dre_app *handle, const char *name, const struct dre_limits *limits)
{
	struct dre_call call = group(handle, "limit", name);

	dre_limits_of(&call, limits);
	return dre_done(&call);
}

PUBLIC int dre_app_cgroup_get(dre_app *handle, const char *name, double seconds, struct dre_resources **resources)
{
	struct dre_call call = with_rates(group(handle, "stat", name), seconds);

	return dre_resources_of(&call, resources);
}

PUBLIC int dre_app_cgroup_list(dre_app *handle, struct dre_resources ***list)
{
	struct dre_call call = dre_call_of(handle, "cgroup");

	dre_word(&call, "list");
	return dre_resources_list(&call, list);
}

PUBLIC int dre_app_cgroup_add(dre_app *handle, const char *name, int64_t pid)
{
	struct dre_call call = group(handle, "add", name);
	char number[32];

	snprintf(number, sizeof number, "%lld", (long long)pid);
	dre_place(&call, "the process", number);
	return dre_done(&call);
}
