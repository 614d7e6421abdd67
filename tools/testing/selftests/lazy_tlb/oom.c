// SPDX-License-Identifier: GPL-2.0
/*
 * A process that other CPUs are lazy on is killed, and its memory is taken away
 * while it ends: by the OOM killer's reaper, which keeps the mm_struct itself
 * with a reference of its own, or by process_mrelease(2).
 *
 * The OOM killer is asked for by way of sysrq, and told whom to choose.
 */
#include "harness.h"

#include <signal.h>

#define ROUNDS	10
#define SIZE	(8UL << 20)

FIXTURE(oom)
{
	struct lazy_test t;
};

FIXTURE_VARIANT(oom)
{
	enum lazy_how how;
};

FIXTURE_VARIANT_ADD(oom, blocked)
{
	.how = LAZY_BLOCK,
};

FIXTURE_VARIANT_ADD(oom, roamed)
{
	.how = LAZY_ROAM,
};

FIXTURE_VARIANT_ADD(oom, died)
{
	.how = LAZY_DIE,
};

FIXTURE_SETUP(oom)
{
	lazy_setup(_metadata, &self->t, true);
}

FIXTURE_TEARDOWN(oom)
{
	lazy_teardown(_metadata, &self->t);
}

static struct lazy_crowd crowd;

/* Has memory to lose, leaves the other CPUs lazy, says so, and waits for its end. */
static void victim(const struct lazy_cpus *cpus, enum lazy_how how, int ready)
{
	struct lazy_self s;
	char *area;

	if (!lazy_write_file("/proc/self/oom_score_adj", "1000"))
		lazy_fail("oom_score_adj: %s", strerror(errno));
	/* khugepaged would have a reference on the mm. */
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	area = mmap(NULL, SIZE, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (area == MAP_FAILED)
		lazy_fail("mmap: %s", strerror(errno));
	lazy_occupy(&crowd, cpus, cpus->nr - 1, how, &s);
	if (!lazy_write(ready, "x", 1))
		lazy_fail("write: %s", strerror(errno));
	for (;;)
		pause();
}

static pid_t start_victim(struct __test_metadata *_metadata,
			  const struct lazy_cpus *cpus, enum lazy_how how)
{
	int ready[2];
	char byte;
	pid_t pid;

	ASSERT_TRUE(lazy_pin(0, cpus->cpu[0]));
	ASSERT_EQ(0, pipe2(ready, O_CLOEXEC));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid)
		victim(cpus, how, ready[1]);
	close(ready[1]);
	/* Nothing comes if it has failed. */
	ASSERT_EQ(1, read(ready[0], &byte, 1));
	close(ready[0]);
	return pid;
}

static bool has_ended(pid_t pid, double seconds)
{
	double end = lazy_now() + seconds;
	siginfo_t info;

	do {
		info.si_pid = 0;
		if (!waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT) &&
		    info.si_pid == pid)
			return true;
		lazy_sleep_us(20000);
	} while (lazy_now() < end);
	return false;
}

/*
 * If the victim is dying already, and slow to do so, the next request is for
 * another process: this one, and nobody who knows nothing of the test.
 */
static pid_t start_spare(void)
{
	pid_t pid = fork();

	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (!lazy_write_file("/proc/self/oom_score_adj", "999"))
		lazy_fail("oom_score_adj: %s", strerror(errno));
	for (;;)
		pause();
}

static void assert_killed(struct __test_metadata *_metadata, pid_t pid)
{
	int status;

	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_TRUE(WIFSIGNALED(status));
	ASSERT_EQ(SIGKILL, WTERMSIG(status));
}

TEST_F_TIMEOUT(oom, killed, LAZY_TIMEOUT)
{
	pid_t pid, spare = -1;
	int i;

	if (access("/proc/sysrq-trigger", W_OK))
		SKIP(return, "no /proc/sysrq-trigger");
	for (i = 0; i < ROUNDS; i++) {
		pid = start_victim(_metadata, &self->t.cpus, variant->how);
		/* It refuses while the memory of another victim is being reaped. */
		do {
			if (spare < 0 || waitpid(spare, NULL, WNOHANG) == spare)
				spare = start_spare();
			ASSERT_LT(0, spare);
			ASSERT_TRUE(lazy_write_file("/proc/sysrq-trigger", "f"));
		} while (!has_ended(pid, 5));
		assert_killed(_metadata, pid);
	}
	ASSERT_EQ(0, kill(spare, SIGKILL));
	ASSERT_EQ(spare, waitpid(spare, NULL, 0));
}

TEST_F_TIMEOUT(oom, mrelease, LAZY_TIMEOUT)
{
	int i, pidfd, released = 0;
	pid_t pid;

	for (i = 0; i < ROUNDS; i++) {
		pid = start_victim(_metadata, &self->t.cpus, variant->how);
		pidfd = syscall(SYS_pidfd_open, pid, 0);
		ASSERT_LE(0, pidfd);
		ASSERT_EQ(0, kill(pid, SIGKILL));
		if (!syscall(SYS_process_mrelease, pidfd, 0))
			released++;
		else
			/* It may be gone already. */
			ASSERT_EQ(ESRCH, errno);
		close(pidfd);
		assert_killed(_metadata, pid);
	}
	TH_LOG("%d of %d processes were still there to be released", released, i);
}

TEST_HARNESS_MAIN
