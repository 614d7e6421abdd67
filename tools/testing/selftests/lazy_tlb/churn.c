// SPDX-License-Identifier: GPL-2.0
/*
 * fork, exec and exit on all CPUs at once, in an order drawn from a seed, and
 * a count of the mm_structs and page tables that are left afterwards.
 *
 * LAZY_TLB_SEED repeats a run, LAZY_TLB_SECONDS makes it longer. LAZY_TLB_CROWD is
 * more processes than there can be, for the test of that name.
 */
#include "harness.h"

#include <signal.h>
#include <sys/prctl.h>

enum action {
	EXIT_AT_ONCE,
	EXIT_ELSEWHERE,
	NR_CHEAP_ACTIONS,
	EXIT_AFTER_ROAMING = NR_CHEAP_ACTIONS,
	EXIT_WITH_CROWD,
	EXIT_FROM_THREAD,
	EXEC,
	EXEC_WITH_CROWD,
	VFORK_EXEC,
	NR_ACTIONS
};

/* Shared by all workers. */
struct tally {
	atomic_long exits;
	atomic_long actions[NR_ACTIONS];
	atomic_bool stop;
};

FIXTURE(churn)
{
	struct lazy_test t;
	struct tally *tally;
};

FIXTURE_SETUP(churn)
{
	lazy_setup(_metadata, &self->t, false);
	self->tally = mmap(NULL, sizeof(*self->tally), PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->tally);
}

FIXTURE_TEARDOWN(churn)
{
	lazy_teardown(_metadata, &self->t);
}

static struct lazy_crowd crowd;

static void *exit_from_thread(void *code)
{
	_exit((intptr_t)code);
}

static void go_anywhere(const struct lazy_cpus *cpus, unsigned int *seed)
{
	int cpu = cpus->cpu[lazy_random(seed) % cpus->nr];

	if (!lazy_pin(0, cpu))
		lazy_fail("cannot run on CPU %d: %s", cpu, strerror(errno));
}

/* Ends the calling process with @code, by way of @action. */
static void act(const struct lazy_cpus *cpus, enum action action, int code, unsigned int *seed)
{
	pthread_t thread;
	int i;

	switch (action) {
	case EXIT_AT_ONCE:
		break;
	case EXIT_ELSEWHERE:
		go_anywhere(cpus, seed);
		break;
	case EXIT_AFTER_ROAMING:
		for (i = 0; i < cpus->nr; i++)
			go_anywhere(cpus, seed);
		break;
	case EXIT_WITH_CROWD:
		lazy_crowd_start(&crowd, cpus, cpus->nr - 1);
		break;
	case EXIT_FROM_THREAD:
		if (pthread_create(&thread, NULL, exit_from_thread, (void *)(intptr_t)code))
			lazy_fail("pthread_create failed");
		go_anywhere(cpus, seed);
		for (;;)
			pause();
	case EXEC_WITH_CROWD:
		lazy_crowd_start(&crowd, cpus, cpus->nr - 1);
		go_anywhere(cpus, seed);
		lazy_exec_self(code);
		break;
	default:
		lazy_exec_self(code);
	}
	_exit(code);
}

/*
 * By itself, so that nothing the worker keeps in registers depends on vfork().
 */
static pid_t start(const struct lazy_cpus *cpus, enum action action, int code, unsigned int seed)
{
	pid_t pid;

	if (action == VFORK_EXEC) {
		pid = vfork();
		if (!pid)
			lazy_exec_self(code);
		return pid;
	}
	pid = fork();
	if (!pid)
		act(cpus, action, code, &seed);
	return pid;
}

static void worker(const struct lazy_cpus *cpus, int actions, unsigned int seed,
		   struct tally *tally)
{
	enum action action;
	int code, status;
	pid_t pid;

	/* A test that was given up must not go on churning. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (!atomic_load(&tally->stop)) {
		action = lazy_random(&seed) % actions;
		code = 3 + lazy_random(&seed) % 100;
		go_anywhere(cpus, &seed);
		pid = start(cpus, action, code, lazy_random(&seed));
		if (pid < 0)
			lazy_fail("fork: %s", strerror(errno));
		if (waitpid(pid, &status, 0) != pid)
			lazy_fail("waitpid: %s", strerror(errno));
		if (!WIFEXITED(status) || WEXITSTATUS(status) != code)
			lazy_fail("action %d ended with %#x, not %d", action, status, code);
		atomic_fetch_add(&tally->exits, 1);
		atomic_fetch_add(&tally->actions[action], 1);
	}
	_exit(0);
}

/* Churn with the first @actions for so long, and until there were so many exits. */
static void churn(struct __test_metadata *_metadata, const struct lazy_test *t,
		  struct tally *tally, int actions, double seconds, long exits)
{
	double end = lazy_now() + seconds;
	double limit = end + LAZY_TIMEOUT / 2.0;
	int i, status;
	pid_t pid;

	memset(tally, 0, sizeof(*tally));
	for (i = 0; i < t->cpus.nr; i++) {
		pid = fork();
		ASSERT_LE(0, pid);
		if (!pid)
			worker(&t->cpus, actions, t->seed + i, tally);
	}
	while (lazy_now() < end ||
	       (atomic_load(&tally->exits) < exits && lazy_now() < limit)) {
		lazy_sleep_us(100000);
		/* A worker that is gone has found something: do not wait. */
		pid = waitpid(-1, &status, WNOHANG);
		ASSERT_EQ(0, pid)
			TH_LOG("worker %d ended with %#x", pid, status);
	}
	atomic_store(&tally->stop, true);
	for (i = 0; i < t->cpus.nr; i++) {
		ASSERT_LT(0, wait(&status));
		lazy_assert_exited(_metadata, status, 0);
	}
	ASSERT_LE(exits, atomic_load(&tally->exits));
}

TEST_F_TIMEOUT(churn, fork_exec_exit, LAZY_TIMEOUT)
{
	int i;

	churn(_metadata, &self->t, self->tally, NR_ACTIONS,
	      lazy_env("LAZY_TLB_SECONDS", 5), 100);
	for (i = 0; i < NR_ACTIONS; i++)
		EXPECT_LT(0, atomic_load(&self->tally->actions[i]))
			TH_LOG("action %d never happened", i);
	TH_LOG("%ld exits", atomic_load(&self->tally->exits));
}

/* Nothing but what is needed to leave CPUs lazy: as many final drops as there can be. */
TEST_F_TIMEOUT(churn, fork_exit, LAZY_TIMEOUT)
{
	churn(_metadata, &self->t, self->tally, NR_CHEAP_ACTIONS,
	      lazy_env("LAZY_TLB_SECONDS", 5), 100);
	TH_LOG("%ld exits", atomic_load(&self->tally->exits));
}

/* An mm that nobody ever drops warns nowhere: count them. */
TEST_F_TIMEOUT(churn, no_leak, LAZY_TIMEOUT)
{
	struct lazy_leftovers before;

	lazy_leftovers(&before);
	if (before.objects[0] < 0)
		SKIP(return, "no mm_struct in /proc/slabinfo");
	churn(_metadata, &self->t, self->tally, NR_ACTIONS, 0,
	      4 * lazy_leftovers_room(&self->t, &before));
	TH_LOG("%ld exits", atomic_load(&self->tally->exits));
	lazy_check_leftovers(_metadata, &self->t, &before);
}

/*
 * Processes until fork() fails in the middle of making an mm, as in user-mode Linux
 * where the host gives it no more files. What was made by then must be gone: the
 * next ones find out.
 */
TEST_F_TIMEOUT(churn, crowd, LAZY_TIMEOUT)
{
	long i, nr, most = lazy_env("LAZY_TLB_CROWD", 0);
	int round, error, status;
	pid_t *pids;

	if (!most)
		SKIP(return, "LAZY_TLB_CROWD does not say how many processes are too many");
	pids = calloc(most, sizeof(*pids));
	ASSERT_NE(NULL, pids);
	for (round = 0; round < 3; round++) {
		for (error = 0, nr = 0; nr < most; nr++) {
			pids[nr] = fork();
			if (!pids[nr])
				for (;;)
					pause();
			if (pids[nr] < 0) {
				error = errno;
				break;
			}
		}
		for (i = 0; i < nr; i++)
			EXPECT_EQ(0, kill(pids[i], SIGKILL));
		for (i = 0; i < nr; i++)
			EXPECT_EQ(pids[i], waitpid(pids[i], &status, 0));
		TH_LOG("%ld processes, then: %s", nr, strerror(error));
		EXPECT_NE(0, error);
	}
	free(pids);
}

int main(int argc, char **argv)
{
	lazy_exec_target(argc, argv);
	return test_harness_run(argc, argv);
}
