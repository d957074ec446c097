// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which process is which, inside and outside of its PID namespace: /dev/daware tells the number of one, /proc/daware
 * lists them. What Linux has had since 6.11 as ioctls of /proc/PID/ns/pid, for the kernels before.
 *
 * A caller is told of its own namespace and of those below, never of one above or beside.
 */
#include <linux/capability.h>
#include <linux/cred.h>
#include <linux/file.h>
#include <linux/magic.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/pid_namespace.h>
#include <linux/proc_fs.h>
#include <linux/proc_ns.h>
#include <linux/sched.h>
#include <linux/seq_file.h>
#include <linux/string_helpers.h>
#include <linux/uaccess.h>

#include "daware_ioctl.h"

/* The namespace that *file* stands for, which holds it; NULL: it stands for something else. */
static struct pid_namespace *namespace_of(struct file *file)
{
	struct inode *inode = file_inode(file);
	struct ns_common *common;

	if (inode->i_sb->s_magic != NSFS_MAGIC)
		return NULL;
	common = get_proc_ns(inode);
	return common->ops->type == CLONE_NEWPID ? container_of(common, struct pid_namespace, ns) : NULL;
}

/* Whether *space* is the caller's own namespace or below it. */
static bool is_within(const struct pid_namespace *space)
{
	const struct pid_namespace *own = task_active_pid_ns(current);

	while (space && space != own)
		space = space->parent;
	return space;
}

/* What process *number* of *from* is called in *to*; 0: there is none, or it is not in *to*. */
static pid_t translated(pid_t number, struct pid_namespace *from, struct pid_namespace *to)
{
	struct task_struct *task;
	pid_t found = 0;

	rcu_read_lock();
	task = pid_task(find_pid_ns(number, from), PIDTYPE_PID);
	if (task)
		found = task_tgid_nr_ns(task, to);
	rcu_read_unlock();
	return found;
}

static int answer(struct daware_pid *asked, bool inwards)
{
	struct pid_namespace *own = task_active_pid_ns(current), *space;
	struct file *file = fget(asked->space);
	int error = 0;

	if (!file)
		return -EBADF;
	space = namespace_of(file);
	if (!space || asked->pid < 1)
		error = -EINVAL;
	else if (!is_within(space))
		error = -EPERM;
	else
		asked->found = translated(asked->pid, inwards ? own : space, inwards ? space : own);
	fput(file);
	return error ?: asked->found ? 0 : -ESRCH;
}

static long daware_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	struct daware_pid __user *place = (void __user *)argument;
	struct daware_pid asked;
	int error;

	if (command != DAWARE_PID_INSIDE && command != DAWARE_PID_OUTSIDE)
		return -ENOTTY;
	if (copy_from_user(&asked, place, sizeof(asked)))
		return -EFAULT;
	asked.found = 0;
	error = answer(&asked, command == DAWARE_PID_INSIDE);
	if (error)
		return error;
	return put_user(asked.found, &place->found);
}

static const struct file_operations daware_device_operations = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = daware_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

/* For everybody: what is told hangs on the namespace, which the caller had to open. */
static struct miscdevice daware_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "daware",
	.mode = 0666,
	.fops = &daware_device_operations,
};

/*
 * /proc/daware: a head, then a line for each process in a namespace below that of this /proc. A place in it is the
 * number of a process there. From start to stop RCU keeps what is found.
 */
static struct pid_namespace *space_of(struct seq_file *list)
{
	return proc_sb_info(file_inode(list->file)->i_sb)->pid_ns;
}

static void *daware_start(struct seq_file *list, loff_t *place) __acquires(RCU)
{
	rcu_read_lock();
	return *place ? find_ge_pid(*place, space_of(list)) : SEQ_START_TOKEN;
}

static void *daware_next(struct seq_file *list, void *element, loff_t *place)
{
	*place = element == SEQ_START_TOKEN ? 1 : pid_nr_ns(element, space_of(list)) + 1;
	return find_ge_pid(*place, space_of(list));
}

static void daware_stop(struct seq_file *list, void *element) __releases(RCU)
{
	rcu_read_unlock();
}

static int daware_show(struct seq_file *list, void *element)
{
	struct pid_namespace *here = space_of(list), *there;
	struct task_struct *task;
	char name[TASK_COMM_LEN];

	if (element == SEQ_START_TOKEN) {
		seq_puts(list, "outer inner first comm\n");
		return 0;
	}
	task = pid_task(element, PIDTYPE_TGID); /* NULL: a thread, or it is ending */
	there = ns_of_pid(element);
	if (!task || there == here)
		return 0;
	get_task_comm(name, task);
	seq_printf(list, "%d %d %d ", pid_nr_ns(element, here), pid_nr_ns(element, there), translated(1, there, here));
	seq_escape_str(list, name, ESCAPE_SPACE | ESCAPE_SPECIAL, " \n\\");
	seq_putc(list, '\n');
	return 0;
}

static const struct seq_operations daware_list = {
	.start = daware_start,
	.next = daware_next,
	.stop = daware_stop,
	.show = daware_show,
};

/* As /proc itself hides processes by its option hidepid, but all or none of them. */
static bool is_hidden(const struct proc_fs_info *mounted)
{
	if (mounted->hide_pid == HIDEPID_OFF || ns_capable(mounted->pid_ns->user_ns, CAP_SYS_PTRACE))
		return false;
	return mounted->hide_pid == HIDEPID_NOT_PTRACEABLE || !in_group_p(mounted->pid_gid);
}

static int daware_open(struct inode *inode, struct file *file)
{
	const struct proc_fs_info *mounted = proc_sb_info(inode->i_sb);

	if (!is_within(mounted->pid_ns) || is_hidden(mounted))
		return -EPERM;
	return seq_open(file, &daware_list);
}

static const struct proc_ops daware_list_operations = {
	.proc_open = daware_open,
	.proc_read = seq_read,
	.proc_lseek = seq_lseek,
	.proc_release = seq_release,
};

static int __init daware_init(void)
{
	struct proc_dir_entry *entry = proc_create("daware", 0444, NULL, &daware_list_operations);
	int error;

	if (!entry)
		return -ENOMEM;
	error = misc_register(&daware_device);
	if (error)
		proc_remove(entry);
	return error;
}

static void __exit daware_exit(void)
{
	misc_deregister(&daware_device);
	remove_proc_entry("daware", NULL);
}

module_init(daware_init);
module_exit(daware_exit);

MODULE_LICENSE("GPL");
MODULE_AUTHOR("D-RE maintainers");
MODULE_DESCRIPTION("Numbers of processes inside and outside of their PID namespace");
