/* SPDX-License-Identifier: GPL-2.0-only */
/* Where a symbol of the kernel is that modules are not told of. */
#include <linux/kprobes.h>

static void *found(const char *name)
{
	struct kprobe probe = { .symbol_name = "kallsyms_lookup_name" };
	unsigned long (*lookup)(const char *name);

	if (register_kprobe(&probe) < 0)
		return NULL;
	lookup = (void *)probe.addr;
	unregister_kprobe(&probe);
	return (void *)lookup(name);
}
