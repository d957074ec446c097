// SPDX-License-Identifier: Apache-2.0
// Stands before libfaketime 0.9.10, whose clock_nanosleep(2) refuses every absolute time (EINVAL) while the monotonic
// clock is not faked, and so breaks time.sleep() of Python 3.11: the kernel's own.
#include <errno.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *wanted, struct timespec *left)
{
	return syscall(SYS_clock_nanosleep, clock, flags, wanted, left) == 0 ? 0 : errno;
}
