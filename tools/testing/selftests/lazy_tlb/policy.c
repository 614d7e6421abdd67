// SPDX-License-Identifier: GPL-2.0
/*
 * The policy is changed while the system runs: what may be written, what is
 * refused, and that no mm is lost or freed early if that happens as fast as it
 * goes while processes fork, exec, exit and leave CPUs lazy, and CPUs come and go.
 *
 * LAZY_TLB_SEED repeats a run, LAZY_TLB_SECONDS makes it longer.
 */
#include "harness.h"

#include <signal.h>
#include <sys/stat.h>

FIXTURE(policy)
{
	struct lazy_test t;
	struct lazy_tally *tally;
};

FIXTURE_SETUP(policy)
{
	lazy_setup(_metadata, &self->t, false);
	if (_metadata->exit_code)
		return;
	if (access(LAZY_TLB_POLICY, F_OK))
		SKIP(return, "no " LAZY_TLB_POLICY);
	if (geteuid())
		SKIP(return, "needs root");
	self->tally = mmap(NULL, sizeof(*self->tally), PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->tally);
}

FIXTURE_TEARDOWN(policy)
{
	if (self->t.known)
		EXPECT_TRUE(lazy_set_policy(self->t.policy));
	lazy_teardown(_metadata, &self->t);
}

static long policy_changes(void)
{
	long changes;

	return lazy_vmstat("lazy_tlb_policy_changes", &changes) ? changes : -1;
}

static bool in_force(const char *policy)
{
	char now[32];

	return lazy_policy(now, sizeof(now)) && !strcmp(now, policy);
}

TEST_F(policy, is_what_was_written)
{
	long before, changes = 0;
	char text[32];
	int i;

	ASSERT_TRUE(lazy_set_policy(lazy_policies[0]));
	before = policy_changes();
	for (i = 1; i < 4 * LAZY_NR_POLICIES; i++) {
		/* With a newline, and without. */
		snprintf(text, sizeof(text), "%s%s",
			 lazy_policies[i % LAZY_NR_POLICIES], i & 1 ? "\n" : "");
		ASSERT_TRUE(lazy_set_policy(text));
		ASSERT_TRUE(in_force(lazy_policies[i % LAZY_NR_POLICIES]));
		changes++;
		/* That changes nothing. */
		ASSERT_TRUE(lazy_set_policy(text));
		ASSERT_TRUE(in_force(lazy_policies[i % LAZY_NR_POLICIES]));
	}
	if (before >= 0)
		EXPECT_EQ(changes, policy_changes() - before);
}

TEST_F(policy, bad_values_change_nothing)
{
	static const char * const bad[] = {
		"\n", " ", "refcoun", "refcountx", "Refcount", "defer", "shootdown,handover",
		"shootdown handover", "handover\nrefcount", "1", "\377",
		"refcount handover shootdown refcount",
		"handover        x",	/* were it cut, it would be good */
	};
	char huge[2048];
	long before;
	size_t i;
	int p;

	memset(huge, 'x', sizeof(huge) - 1);
	huge[sizeof(huge) - 1] = '\0';
	for (p = 0; p < LAZY_NR_POLICIES; p++) {
		ASSERT_TRUE(lazy_set_policy(lazy_policies[p]));
		before = policy_changes();
		for (i = 0; i < ARRAY_SIZE(bad); i++) {
			EXPECT_FALSE(lazy_set_policy(bad[i]))
				TH_LOG("took \"%s\"", bad[i]);
			EXPECT_EQ(EINVAL, errno);
			EXPECT_TRUE(in_force(lazy_policies[p]));
		}
		EXPECT_FALSE(lazy_set_policy(huge));
		EXPECT_TRUE(in_force(lazy_policies[p]));
		EXPECT_EQ(before, policy_changes());
	}
}

TEST_F(policy, only_root_writes)
{
	struct stat st;
	int status;
	pid_t pid;

	ASSERT_EQ(0, stat(LAZY_TLB_POLICY, &st));
	EXPECT_EQ(0644U, st.st_mode & 07777U);
	EXPECT_EQ(0U, st.st_uid);

	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		if (setresuid(65534, 65534, 65534))
			lazy_fail("setresuid: %s", strerror(errno));
		if (lazy_set_policy("refcount") || errno != EACCES)
			lazy_fail("not refused: %s", strerror(errno));
		if (!in_force(self->t.policy))
			lazy_fail("cannot be read, or has changed");
		_exit(0);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	lazy_assert_exited(_metadata, status, 0);
}

/* ---- under load ------------------------------------------------------- */

static void flip(const struct lazy_cpus *cpus, unsigned int seed, struct lazy_tally *tally)
{
	while (!atomic_load(&tally->stop)) {
		if (lazy_random(&seed) % 64 == 0)
			lazy_go_somewhere(cpus, &seed);
		if (!lazy_set_policy(lazy_policies[lazy_random(&seed) % LAZY_NR_POLICIES]))
			lazy_fail("cannot change the policy: %s", strerror(errno));
	}
	_exit(0);
}

/* Threads block everywhere, exit there, or are killed by the end or by exec. */
static void threads(const struct lazy_cpus *cpus, unsigned int seed, struct lazy_tally *tally)
{
	static struct lazy_crowd crowd;
	int i, rounds, status;
	bool exec;
	pid_t pid;

	while (!atomic_load(&tally->stop)) {
		lazy_go_somewhere(cpus, &seed);
		rounds = 1 + lazy_random(&seed) % 3;
		exec = lazy_random(&seed) % 2;
		pid = fork();
		if (!pid) {
			crowd.anywhere = true;
			crowd.once = lazy_random(&seed) % 2;
			lazy_crowd_start(&crowd, cpus, cpus->nr - 1);
			for (i = 0; i < rounds; i++) {
				lazy_go_somewhere(cpus, &seed);
				if (!crowd.once)
					lazy_crowd_kick(&crowd);
			}
			if (exec)
				lazy_exec_self(0);
			_exit(0);
		}
		if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
			lazy_fail("fork, waitpid, or what it started, has failed");
		atomic_fetch_add(&tally->exits, 1);
	}
	_exit(0);
}

/* CPUs go and come back. */
static void hotplug(const struct lazy_cpus *can, unsigned int seed, struct lazy_tally *tally)
{
	int cpu;

	while (!atomic_load(&tally->stop)) {
		cpu = can->cpu[lazy_random(&seed) % can->nr];
		if (!lazy_set_online(cpu, false) || !lazy_set_online(cpu, true))
			lazy_fail("CPU %d: %s", cpu, strerror(errno));
		lazy_sleep_us(lazy_random(&seed) % 50000);
	}
	_exit(0);
}

static void start(struct __test_metadata *_metadata,
		  void (*fn)(const struct lazy_cpus *cpus, unsigned int seed,
			     struct lazy_tally *tally),
		  const struct lazy_cpus *cpus, unsigned int seed, struct lazy_tally *tally)
{
	pid_t pid = fork();

	ASSERT_LE(0, pid);
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		fn(cpus, seed, tally);
	}
}

TEST_F_TIMEOUT(policy, flips_under_load, LAZY_TIMEOUT)
{
	double end = lazy_now() + lazy_env("LAZY_TLB_SECONDS", 5);
	double limit = end + LAZY_TIMEOUT / 2.0;
	struct lazy_test *t = &self->t;
	struct lazy_leftovers before;
	struct lazy_cpus can;
	int i, nr = 0, status;
	long changes;
	pid_t pid;

	ASSERT_TRUE(self->t.known);
	lazy_leftovers(&before);
	changes = policy_changes();
	start(_metadata, flip, &t->cpus, t->seed, self->tally);
	nr++;
	for (i = 0; i < t->cpus.nr; i++, nr++)
		start(_metadata, i & 1 ? threads : lazy_fork_roam_exit, &t->cpus,
		      t->seed + i, self->tally);
	if (lazy_env("LAZY_TLB_HOTPLUG", false) && lazy_cpus_can_offline(&t->cpus, &can)) {
		start(_metadata, hotplug, &can, t->seed, self->tally);
		nr++;
	}

	while (lazy_now() < end ||
	       (atomic_load(&self->tally->exits) < 100 && lazy_now() < limit)) {
		lazy_sleep_us(20000);
		/* A process that is gone has found something: do not wait. */
		pid = waitpid(-1, &status, WNOHANG);
		ASSERT_EQ(0, pid)
			TH_LOG("process %d ended with %#x", pid, status);
	}
	atomic_store(&self->tally->stop, true);
	while (nr--) {
		ASSERT_LT(0, wait(&status));
		lazy_assert_exited(_metadata, status, 0);
	}
	TH_LOG("%ld exits, %ld changes of the policy", atomic_load(&self->tally->exits),
	       policy_changes() - changes);
	if (changes >= 0)
		EXPECT_LT(10, policy_changes() - changes);
	EXPECT_LE(100, atomic_load(&self->tally->exits));
	ASSERT_TRUE(lazy_set_policy(t->policy));
	lazy_check_leftovers(_metadata, t, &before);
}

int main(int argc, char **argv)
{
	lazy_exec_target(argc, argv);
	return test_harness_run(argc, argv);
}
