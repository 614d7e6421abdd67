// SPDX-License-Identifier: GPL-2.0
/*
 * The first process of the guests that `bench exit` boots: how long exits take
 * under each policy, changed at run time, as `lazy-tlb-exit: key=value ...`
 * lines.
 *
 * From the kernel command line: LAZY_TLB_POLICIES, separated by commas;
 * LAZY_TLB_ROUNDS (20); LAZY_TLB_EXITS (25), how many are measured in each round
 * under each policy.
 */
#include "common.h"

#define POLICY_FILE	"/sys/module/kernel/parameters/lazy_tlb"
#define MAX_POLICIES	8
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
		if (!lazy_pin(0, cpus.cpu[i]))
			lazy_fail("cannot run on CPU %d: %s", cpus.cpu[i], strerror(errno));
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

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static long counter(const char *name)
{
	long value;

	return lazy_vmstat(name, &value) ? value : -1;
}

static bool measure_all(bool lazy, double *us, long nr)
{
	long i;

	for (i = 0; i < nr; i++) {
		us[i] = measure(lazy);
		if (us[i] < 0) {
			guest_problem("an exit failed: %s", strerror(errno));
			return false;
		}
	}
	return true;
}

static bool exits(long round, const char *policy, bool lazy)
{
	long nr = lazy_env("LAZY_TLB_EXITS", 25), handed, nudged;
	double us[MAX_EXITS];

	if (nr < WARMUP || nr > MAX_EXITS || !lazy_write_file(POLICY_FILE, policy)) {
		guest_problem("%ld exits with policy %s: %s", nr, policy, strerror(errno));
		return false;
	}
	if (!measure_all(lazy, us, WARMUP))
		return false;
	handed = counter("lazy_tlb_handed");
	nudged = counter("lazy_tlb_nudged");
	if (!measure_all(lazy, us, nr))
		return false;
	handed = counter("lazy_tlb_handed") - handed;
	nudged = counter("lazy_tlb_nudged") - nudged;
	qsort(us, nr, sizeof(*us), compare);
	guest_line("lazy-tlb-exit: round=%ld policy=%s case=%s cpus=%d exits=%ld handed=%ld nudged=%ld us=%.3f",
		   round, policy, lazy ? "lazy" : "none", cpus.nr, nr, handed, nudged,
		   (us[(nr - 1) / 2] + us[nr / 2]) / 2);
	return true;
}

int main(void)
{
	long rounds = lazy_env("LAZY_TLB_ROUNDS", 20), round;
	char *policy[MAX_POLICIES], *list, *name;
	int nr = 0, lazy, turn;

	guest_start();
	list = getenv("LAZY_TLB_POLICIES");
	for (name = strtok(list ?: "", ","); name && nr < MAX_POLICIES; name = strtok(NULL, ","))
		policy[nr++] = name;
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (!nr || lazy_cpus_get(&cpus) < 2 || shared == MAP_FAILED ||
	    !lazy_pin(0, cpus.cpu[0])) {
		guest_problem("%d policies, %d CPUs: nothing to measure", nr, cpus.nr);
		guest_end();
	}
	lazy_sleep_us(START_US);
	/* Those of a round one after the other, and another one first each time. */
	for (round = 1; round <= rounds; round++)
		for (lazy = 1; lazy >= 0; lazy--)
			for (turn = 0; turn < nr; turn++)
				if (!exits(round, policy[(round + turn) % nr], lazy))
					guest_end();
	guest_end();
}
