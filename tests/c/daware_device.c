// SPDX-License-Identifier: Apache-2.0
/*
 * What tests/vm/test_daware_mod.py has done with /dev/daware and /proc/daware in a guest: argv[1] says what. Each failed
 * check says so. What is right is told by the lines NSpid of /proc. For root, and linked statically.
 */
#define _GNU_SOURCE
#include <daware_ioctl.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

static int failures, device;

#define CHECK(true)                                                                                                    \
	do {                                                                                                           \
		if (!(true)) {                                                                                         \
			printf("%s:%d: not so: %s (%m)\n", __FILE__, __LINE__, #true);                                 \
			fflush(stdout);                                                                                \
			failures++;                                                                                    \
		}                                                                                                      \
	} while (0)

/* As fork(), into namespaces of its own. */
static pid_t born(unsigned long namespaces)
{
	fflush(stdout);
	return (pid_t)syscall(SYS_clone, namespaces | SIGCHLD, NULL, NULL, NULL, NULL);
}

static int space_of(pid_t process, const char *kind)
{
	char path[64];

	snprintf(path, sizeof path, "/proc/%d/ns/%s", process, kind);
	return open(path, O_RDONLY | O_CLOEXEC);
}

/* The number that the module tells; 0: none there, or a negative errno. */
static int told(unsigned long command, int space, pid_t process)
{
	struct daware_pid asked = {space, process, -1};

	if (ioctl(device, command, &asked) == 0)
		return asked.found;
	return errno == ESRCH ? 0 : -errno;
}

/* The numbers of *process* by /proc, from that of the mounted one inwards. */
static int numbers_of(pid_t process, int numbers[8])
{
	char path[64], line[256];
	int count = 0;
	FILE *file;

	snprintf(path, sizeof path, "/proc/%d/status", process);
	file = fopen(path, "re");
	while (file != NULL && fgets(line, sizeof line, file) != NULL)
		if (strncmp(line, "NSpid:", 6) == 0)
			for (char *at = strtok(line + 6, "\t \n"); at != NULL && count < 8; at = strtok(NULL, "\t \n"))
				numbers[count++] = atoi(at);
	if (file != NULL)
		fclose(file);
	return count;
}

static pid_t child_of(pid_t process)
{
	char path[64];
	int child = 0;
	FILE *file;

	snprintf(path, sizeof path, "/proc/%d/task/%d/children", process, process);
	file = fopen(path, "re");
	if (file == NULL || fscanf(file, "%d", &child) != 1)
		child = 0;
	if (file != NULL)
		fclose(file);
	return child;
}

/* Whether /proc/daware has the line of *process*, and how many it has. */
static int is_listed(pid_t process, int inner, pid_t first, const char *name, int *lines)
{
	char line[128], expected[128];
	FILE *file = fopen("/proc/daware", "re");
	int found = 0;

	*lines = 0;
	if (file == NULL)
		return 0;
	snprintf(expected, sizeof expected, "%d %d %d %s\n", process, inner, first, name);
	CHECK(fgets(line, sizeof line, file) != NULL && strcmp(line, "outer inner first comm\n") == 0);
	for (; fgets(line, sizeof line, file) != NULL; ++*lines)
		found += strcmp(line, expected) == 0;
	fclose(file);
	return found == 1;
}

/* --- who is told what: this namespace, two nested ones in it, and one beside these --- */

static void sleep_for_ever(const char *name)
{
	prctl(PR_SET_NAME, name);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;)
		pause();
}

/* The first process of the second namespace, and its child. */
static void innermost(int ready)
{
	prctl(PR_SET_NAME, "second");
	if (born(0) == 0) {
		CHECK(prctl(PR_SET_NAME, "th\nir\\d") == 0);
		CHECK(write(ready, "x", 1) == 1);
		sleep_for_ever("th\nir\\d");
	}
	sleep_for_ever("second");
}

/* The first process of the first namespace; *above* and *beside* are none of its business. */
static void middle(int above, int beside, int ready, int end)
{
	int lines, inner, own, proceed[2];
	pid_t second, third;
	char octet;

	CHECK(pipe(proceed) == 0 && getpid() == 1);
	second = born(CLONE_NEWPID);
	if (second == 0)
		innermost(proceed[1]);
	CHECK(read(proceed[0], &octet, 1) == 1);
	for (unsigned long command = 0; command < 2; command++) {
		unsigned long asked = command ? DAWARE_PID_INSIDE : DAWARE_PID_OUTSIDE;

		CHECK(told(asked, above, 1) == -EPERM && told(asked, beside, 1) == -EPERM);
	}
	/* This /proc is that of the namespace above. */
	CHECK(open("/proc/daware", O_RDONLY) < 0 && errno == EPERM);
	CHECK(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 && mount("proc", "/proc", "proc", 0, NULL) == 0);
	own = space_of(1, "pid");
	inner = space_of(second, "pid");
	third = child_of(second);
	CHECK(told(DAWARE_PID_INSIDE, own, 1) == 1 && told(DAWARE_PID_OUTSIDE, own, second) == second);
	CHECK(told(DAWARE_PID_INSIDE, inner, second) == 1 && told(DAWARE_PID_OUTSIDE, inner, 1) == second);
	CHECK(told(DAWARE_PID_INSIDE, inner, third) == 2 && told(DAWARE_PID_OUTSIDE, inner, 2) == third);
	CHECK(told(DAWARE_PID_INSIDE, inner, 1) == 0);
	CHECK(is_listed(second, 1, second, "second", &lines) && lines == 2);
	CHECK(is_listed(third, 2, second, "th\\nir\\\\d", &lines) && lines == 2);
	CHECK(write(ready, failures ? "f" : "x", 1) == 1);
	CHECK(read(end, &octet, 1) == 1);
	_exit(0);
}

static void do_nested(void)
{
	int ready[2], end[2], spaces[3], of[3][8], counts[3], lines, net = space_of(getpid(), "net");
	pid_t side, chain[3];
	char octet = 0;

	CHECK(pipe(ready) == 0 && pipe(end) == 0);
	spaces[0] = space_of(getpid(), "pid");
	side = born(CLONE_NEWPID);
	if (side == 0)
		sleep_for_ever("side");
	chain[0] = born(CLONE_NEWPID | CLONE_NEWNS);
	if (chain[0] == 0)
		middle(spaces[0], space_of(side, "pid"), ready[1], end[0]);
	CHECK(read(ready[0], &octet, 1) == 1 && octet == 'x');
	chain[1] = child_of(chain[0]);
	chain[2] = child_of(chain[1]);
	spaces[1] = space_of(chain[0], "pid");
	spaces[2] = space_of(chain[1], "pid");
	for (int at = 0; at < 3; at++) {
		counts[at] = numbers_of(chain[at], of[at]);
		CHECK(counts[at] == (at == 0 ? 2 : 3));
		for (int level = 0; level < counts[at]; level++) {
			CHECK(told(DAWARE_PID_INSIDE, spaces[level], chain[at]) == of[at][level]);
			CHECK(told(DAWARE_PID_OUTSIDE, spaces[level], of[at][level]) == chain[at]);
		}
	}
	CHECK(told(DAWARE_PID_INSIDE, spaces[2], chain[0]) == 0 && told(DAWARE_PID_INSIDE, spaces[1], side) == 0);
	CHECK(told(DAWARE_PID_OUTSIDE, spaces[2], 3999) == 0 && told(DAWARE_PID_INSIDE, spaces[1], getpid()) == 0);
	CHECK(told(DAWARE_PID_INSIDE, spaces[1], 0) == -EINVAL && told(DAWARE_PID_OUTSIDE, spaces[1], -1) == -EINVAL);
	CHECK(told(DAWARE_PID_INSIDE, -1, 1) == -EBADF && told(DAWARE_PID_INSIDE, net, 1) == -EINVAL);
	CHECK(told(DAWARE_PID_INSIDE, device, 1) == -EINVAL && told(DAWARE_PID_INSIDE + 2, spaces[1], 1) == -ENOTTY);
	CHECK(is_listed(chain[0], 1, chain[0], "daware_device", &lines) && is_listed(side, 1, side, "side", &lines));
	CHECK(is_listed(chain[2], 2, chain[1], "th\\nir\\\\d", &lines) && lines >= 4);
	CHECK(!is_listed(getpid(), getpid(), 1, "daware_device", &lines));
	CHECK(write(end[1], "x", 1) == 1 && waitpid(chain[0], NULL, 0) == chain[0]);
	CHECK(told(DAWARE_PID_OUTSIDE, spaces[1], 1) == 0 && told(DAWARE_PID_OUTSIDE, spaces[2], 1) == 0);
	kill(side, SIGKILL);
	waitpid(side, NULL, 0);
}

/* --- nobody: what /proc hides, the module hides --- */

/* As nobody, where the option of /proc is *option*: read the list, and look at itself and at the first process. */
static void as_nobody(const char *option, int readable)
{
	pid_t child = born(CLONE_NEWNS);
	int status;

	if (child == 0) {
		CHECK(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0);
		CHECK(mount("proc", "/proc", "proc", 0, option) == 0);
		CHECK(open("/proc/daware", O_RDONLY) >= 0);
		CHECK(setgroups(0, NULL) == 0 && setgid(65534) == 0 && setuid(65534) == 0);
		CHECK(prctl(PR_SET_DUMPABLE, 1) == 0);
		CHECK((open("/proc/daware", O_RDONLY) >= 0) == readable);
		device = open("/dev/daware", O_RDONLY);
		CHECK(told(DAWARE_PID_INSIDE, space_of(getpid(), "pid"), getpid()) == getpid());
		CHECK(space_of(1, "pid") < 0); /* so it cannot ask */
		fflush(stdout);
		_exit(failures != 0);
	}
	CHECK(waitpid(child, &status, 0) == child && status == 0);
}

/* --- processes that end --- */

static void do_dying(int rounds)
{
	pid_t reader = born(0);

	if (reader == 0) {
		char octets[4096];

		for (;;) {
			int list = open("/proc/daware", O_RDONLY);

			while (read(list, octets, 1 + (size_t)(rand() % 4096)) > 0)
				;
			close(list);
		}
	}
	for (int round = 0; round < rounds; round++) {
		int space, end[2], found, seen = 0, status;
		pid_t child;

		CHECK(pipe(end) == 0);
		child = born(CLONE_NEWPID);
		if (child == 0) { /* it ends with others in its namespace, at some moment after it is told to */
			char octet;

			for (int others = 0; others < 3; others++)
				if (born(0) == 0)
					sleep_for_ever("other");
			CHECK(read(end[0], &octet, 1) == 1);
			for (volatile int at = rand() % 100000; at > 0; at--)
				;
			_exit(0);
		}
		srand((unsigned)round);
		space = space_of(child, "pid");
		CHECK(told(DAWARE_PID_OUTSIDE, space, 1) == child && write(end[1], "x", 1) == 1);
		while (waitpid(child, &status, WNOHANG) == 0) {
			found = told(DAWARE_PID_OUTSIDE, space, 1);
			CHECK(found == child || found == 0);
			found = told(DAWARE_PID_INSIDE, space, child);
			CHECK(found == 1 || found == 0);
			CHECK(told(DAWARE_PID_OUTSIDE, space, 3) >= 0);
			seen++;
		}
		CHECK(told(DAWARE_PID_OUTSIDE, space, 1) == 0 && told(DAWARE_PID_INSIDE, space, child) == 0);
		CHECK(close(space) == 0 && close(end[0]) == 0 && close(end[1]) == 0);
	}
	kill(reader, SIGKILL);
	waitpid(reader, NULL, 0);
}

/* --- calls that make no sense --- */

static int any_of(const int *these, size_t count)
{
	return these[(size_t)rand() % count];
}

static void do_fuzz(int calls, unsigned seed)
{
	long page = sysconf(_SC_PAGESIZE);
	char *edge = mmap(NULL, 2 * (size_t)page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *fixed = mmap(NULL, (size_t)page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int list = open("/proc/daware", O_RDONLY), good = 0, ends[2], spaces[16];
	pid_t child = born(CLONE_NEWPID);

	if (child == 0)
		sleep_for_ever("child");
	srand(seed);
	CHECK(edge != MAP_FAILED && fixed != MAP_FAILED && mprotect(edge + page, (size_t)page, PROT_NONE) == 0);
	CHECK(pipe(ends) == 0);
	spaces[0] = space_of(getpid(), "pid");
	spaces[1] = space_of(child, "pid");
	spaces[2] = space_of(getpid(), "pid_for_children");
	spaces[3] = space_of(getpid(), "net");
	spaces[4] = space_of(getpid(), "user");
	spaces[5] = ends[0];
	spaces[6] = device;
	spaces[7] = list;
	spaces[8] = memfd_create("memory", 0);
	spaces[9] = epoll_create1(0);
	spaces[10] = socket(AF_UNIX, SOCK_DGRAM, 0);
	spaces[11] = (int)syscall(SYS_pidfd_open, child, 0U);
	spaces[12] = open("/proc/self/ns/pid", O_PATH);
	spaces[13] = -1;
	spaces[14] = INT_MIN;
	spaces[15] = 9999;
	for (int at = 0; at < 13; at++)
		CHECK(spaces[at] >= 0);
	for (int call = 0; call < calls; call++) {
		const int processes[] = {1, 2, getpid(), child, 0, -1, INT_MAX, INT_MIN, rand() % 32768, rand()};
		struct daware_pid whole, *places[] = {
			&whole, (void *)(edge + page - sizeof whole), (void *)(edge + page - 1 - rand() % 11), (void *)fixed,
			NULL, (void *)0xffff888000000000, (void *)-1, (void *)((char *)&whole + 1)};
		/* Each is right about half of the time. */
		struct daware_pid asked = {any_of(spaces, rand() % 2 ? 3 : COUNT(spaces)),
			any_of(processes, rand() % 2 ? 4 : COUNT(processes)), rand()};
		size_t which = (size_t)rand() % (rand() % 2 ? 2 : COUNT(places));
		unsigned commands[] = {
			DAWARE_PID_INSIDE, DAWARE_PID_OUTSIDE, DAWARE_PID_INSIDE ^ (1u << rand() % 32), (unsigned)rand()};
		unsigned command = commands[rand() % (rand() % 2 ? 2 : 4)];
		int known = command == DAWARE_PID_INSIDE || command == DAWARE_PID_OUTSIDE, error, octets[64];

		if (which < 2)
			memcpy(places[which], &asked, sizeof asked);
		error = ioctl(device, command, places[which]) == 0 ? 0 : errno;
		if (!known)
			CHECK(error == ENOTTY);
		else if (which >= 2 && which < 7 && which != 3)
			CHECK(error == EFAULT);
		else if (which < 2 && error == 0)
			CHECK(places[which]->found > 0 && asked.pid > 0);
		else
			CHECK(error == 0 || error == EBADF || error == EINVAL || error == ESRCH || error == EFAULT);
		good += known && error == 0;
		if (which < 2 && known && asked.pid == child && command == DAWARE_PID_INSIDE && asked.space == spaces[1])
			CHECK(error == 0 && places[which]->found == 1);
		if (call % 16 == 0) {
			CHECK(pread(list, octets, (size_t)rand() % sizeof octets, rand() % 300) >= 0);
			CHECK(read(device, octets, sizeof octets) < 0 && errno == EINVAL);
			CHECK(write(device, octets, sizeof octets) < 0);
			CHECK(mmap(NULL, (size_t)page, PROT_READ, MAP_SHARED, device, 0) == MAP_FAILED);
		}
	}
	CHECK(good > calls / 20);
	printf("%d calls, %d answered\n", calls, good);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
}

int main(int argc, char *argv[])
{
	const char *what = argc > 1 ? argv[1] : "";
	int number = argc > 2 ? atoi(argv[2]) : 1;

	device = open("/dev/daware", O_RDONLY | O_CLOEXEC);
	CHECK(device >= 0);
	if (failures)
		return 1;
	if (strcmp(what, "answers") == 0) {
		CHECK(told(DAWARE_PID_INSIDE, space_of(getpid(), "pid"), getpid()) == getpid());
	} else if (strcmp(what, "nested") == 0) {
		do_nested();
	} else if (strcmp(what, "hidden") == 0) {
		as_nobody("hidepid=0", 1);
		as_nobody("hidepid=1", 0);
		as_nobody("hidepid=2", 0);
		as_nobody("hidepid=2,gid=65534", 1);
		as_nobody("hidepid=4,gid=65534", 0);
	} else if (strcmp(what, "dying") == 0) {
		do_dying(number);
	} else if (strcmp(what, "fuzz") == 0) {
		do_fuzz(number, argc > 3 ? (unsigned)atoi(argv[3]) : 1);
	} else {
		failures++;
	}
	printf("%s: %d failures\n", what, failures);
	return failures != 0;
}
