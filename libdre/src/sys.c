// SPDX-License-Identifier: Apache-2.0
/* libdresys: see <dre/dresys.h>. */
#include <dre/dresys.h>

#define KIND dre_sys
#define PROGRAM "/usr/sbin/dre-sys"
#include "kind.h"

PUBLIC int dre_sys_create(dre_sys *handle, const char *name, const struct dre_sys_spec *spec)
{
	struct dre_sys_spec given = DRE_SYS_SPEC_INIT;
	struct dre_call call = about(handle, "create", name);
	char number[16];

	if (spec != NULL)
		memcpy(&given, spec, spec->size < sizeof given ? spec->size : sizeof given);
	dre_option(&call, "base", given.base);
	dre_option(&call, "ip", given.ip);
	dre_option(&call, "memory", given.memory);
	dre_option(&call, "cpu", given.cpu);
	dre_options_of(&call, "ssh-key", given.ssh_key);
	if (given.vcpus != 0) {
		snprintf(number, sizeof number, "%d", given.vcpus);
		dre_option(&call, "vcpus", number);
	}
	if (given.warm)
		dre_word(&call, "--warm");
	if (given.autostart)
		dre_word(&call, "--autostart");
	return dre_done(&call);
}

PUBLIC int dre_sys_start(dre_sys *handle, const char *name, double wait)
{
	struct dre_call call = about(handle, "start", name);

	if (wait != 0)
		call = with_seconds(call, "wait", wait);
	return dre_done(&call);
}

PUBLIC int dre_sys_migrate(dre_sys *handle, const char *name, const char *host, const struct dre_sys_move *move)
{
	struct dre_sys_move given = DRE_SYS_MOVE_INIT;
	struct dre_call call = about(handle, "migrate", name);

	if (move != NULL)
		memcpy(&given, move, move->size < sizeof given ? move->size : sizeof given);
	dre_place(&call, "the host", host);
	dre_option(&call, "as", given.as);
	if (given.live)
		dre_word(&call, "--live");
	if (given.copy_storage)
		dre_word(&call, "--copy-storage");
	if (given.shared_storage)
		dre_word(&call, "--shared-storage");
	if (given.without_snapshots)
		dre_word(&call, "--without-snapshots");
	if (given.tls)
		dre_word(&call, "--tls");
	if (given.unencrypted)
		dre_word(&call, "--unencrypted");
	return dre_done(&call);
}
