// SPDX-License-Identifier: GPL-2.0
/*
 * `bench exit`: how long exits take under each policy, changed at run time, as
 * `lazy-tlb-exit: key=value ...` lines.
 *
 * LAZY_TLB_POLICIES; LAZY_TLB_ROUNDS (20); LAZY_TLB_EXITS (25), how many are
 * measured in each round under each policy.
 */
#include "init.h"

#define MAX_EXITS	1000

/* What the kernel goes on with after its start disturbs exits for some seconds. */
#define START_US	10000000

/* Exits that are not measured, after each change of the policy. */
#define WARMUP		3

/* Lets the CPUs that a process has just left reach the idle loop. */
#define SETTLE_US	200

/* Shared with the process that exits. */
struct shared {
	_Atomic uint32_t arrived;
	double began;
};

static struct shared *shared;
static struct lazy_cpus cpus;

static void futex(int op, uint32_t value)
{
	syscall(SYS_futex, &shared->arrived, op, value, NULL, NULL, 0);
}

/* With @lazy, leaves all CPUs but the last one idle, and lazy on its mm. */
static void visit_and_exit(bool lazy)
{
	int i;

	for (i = lazy ? 0 : cpus.nr - 1; i < cpus.nr; i++)
		guest_go(cpus.cpu[i]);
	if (!lazy) {
		/* The first CPU was lazy on this mm. Its next task, which waits, ends that. */
		atomic_store(&shared->arrived, 1);
		futex(FUTEX_WAKE, 1);
	}
	lazy_sleep_us(SETTLE_US);
	shared->began = lazy_now();
	_exit(0);
}

/* us from _exit() to the return of waitpid(), less than 0 if something failed. */
static double measure(bool lazy)
{
	int status;
	pid_t pid;

	atomic_store(&shared->arrived, 0);
	pid = fork();
	if (!pid)
		visit_and_exit(lazy);
	while (!lazy && pid > 0 && !atomic_load(&shared->arrived))
		futex(FUTEX_WAIT, 0);
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
		return -1;
	return (lazy_now() - shared->began) * 1e6;
}

static bool measure_all(bool lazy, double *us, long nr)
{
	long i;

	for (i = 0; i < nr; i++) {
		us[i] = measure(lazy);
		if (us[i] < 0)
			return false;
	}
	return true;
}

static bool turn(long round, const char *policy, bool lazy)
{
	long nr = lazy_env("LAZY_TLB_EXITS", 25);
	struct lazy_drops before, after;
	double us[MAX_EXITS];

	if (nr < WARMUP || nr > MAX_EXITS || !lazy_set_policy(policy)) {
		guest_problem("%ld exits with policy %s: %s", nr, policy, strerror(errno));
		return false;
	}
	if (!measure_all(lazy, us, WARMUP) || !lazy_drops(&before) ||
	    !measure_all(lazy, us, nr) || !lazy_drops(&after)) {
		guest_problem("an exit or a counter failed: %s", strerror(errno));
		return false;
	}
	guest_line("lazy-tlb-exit: round=%ld policy=%s case=%s cpus=%d exits=%ld handed=%ld nudged=%ld us=%.3f",
		   round, policy, lazy ? "lazy" : "none", cpus.nr, nr,
		   after.handed - before.handed, after.nudged - before.nudged,
		   guest_median(us, nr));
	return true;
}

void exits(void)
{
	long rounds = lazy_env("LAZY_TLB_ROUNDS", 20), round;
	char *policy[GUEST_MAX_POLICIES];
	int nr = guest_policies(policy), lazy, i;

	guest_cpus(&cpus);
	shared = guest_shared(sizeof(*shared));
	if (!nr || !lazy_pin(0, cpus.cpu[0])) {
		guest_problem("%d policies: nothing to measure", nr);
		return;
	}
	lazy_sleep_us(START_US);
	/* Those of a round one after the other, and another one first each time. */
	for (round = 1; round <= rounds; round++)
		for (lazy = 1; lazy >= 0; lazy--)
			for (i = 0; i < nr; i++)
				if (!turn(round, policy[(round + i) % nr], lazy))
					return;
}
