// SPDX-License-Identifier: GPL-2.0
/*
 * A CPU goes offline while it is lazy on an mm: it must let go of it, and the
 * final drop must leave it alone, whether it comes before or after its return.
 *
 * LAZY_TLB_SECONDS has CPUs come and go for longer under churn.
 */
#include "harness.h"

FIXTURE(hotplug)
{
	struct lazy_test t;
	struct lazy_cpus can;	/* CPUs that can be taken offline, home excepted */
};

FIXTURE_VARIANT(hotplug)
{
	enum lazy_how how;
};

FIXTURE_VARIANT_ADD(hotplug, blocked)
{
	.how = LAZY_BLOCK,
};

FIXTURE_VARIANT_ADD(hotplug, roamed)
{
	.how = LAZY_ROAM,
};

FIXTURE_VARIANT_ADD(hotplug, died)
{
	.how = LAZY_DIE,
};

static void setup(struct __test_metadata *_metadata, struct lazy_test *t,
		  struct lazy_cpus *can)
{
	lazy_setup(_metadata, t, true);
	if (_metadata->exit_code)
		return;
	if (!lazy_env("LAZY_TLB_HOTPLUG", true))
		SKIP(return, "LAZY_TLB_HOTPLUG=0");
	if (!lazy_cpus_can_offline(&t->cpus, can))
		SKIP(return, "no CPU can be taken offline");
}

static void teardown(struct __test_metadata *_metadata, const struct lazy_test *t,
		     const struct lazy_cpus *can)
{
	int i;

	for (i = 0; i < can->nr; i++)
		EXPECT_TRUE(lazy_set_online(can->cpu[i], true));
	lazy_teardown(_metadata, t);
}

/* Every CPU at least twice, but not hours on a large machine. */
static int rounds(const struct lazy_cpus *can)
{
	return 2 * (can->nr < 8 ? can->nr : 8);
}

FIXTURE_SETUP(hotplug)
{
	setup(_metadata, &self->t, &self->can);
}

FIXTURE_TEARDOWN(hotplug)
{
	teardown(_metadata, &self->t, &self->can);
}

struct job {
	enum lazy_how how;
	bool refcount;
	int victim;
	bool back;	/* bring the CPU back before the final drop */
};

static struct lazy_crowd crowd;

static void offline_and_end(const struct lazy_cpus *cpus, void *arg)
{
	const struct job *job = arg;
	struct lazy_self s;

	lazy_occupy(&crowd, cpus, cpus->nr - 1, job->how, &s);
	if (!lazy_set_online(job->victim, false))
		lazy_fail("cannot take CPU %d offline: %s", job->victim, strerror(errno));
	lazy_self_or_fail(&s);
	if (s.lazies > cpus->nr - 2)
		lazy_fail("CPU %d is offline, but %ld of %d CPUs are lazy",
			  job->victim, s.lazies, cpus->nr - 1);
	lazy_check_counts(job->refcount, "with a CPU offline");
	if (job->back && !lazy_set_online(job->victim, true))
		lazy_fail("cannot bring CPU %d back: %s", job->victim, strerror(errno));
}

TEST_F_TIMEOUT(hotplug, offline_lazy, LAZY_TIMEOUT)
{
	struct job job = { .how = variant->how, .refcount = self->t.refcount };
	int i, status;

	for (i = 0; i < rounds(&self->can); i++) {
		job.victim = self->can.cpu[i / 2 % self->can.nr];
		job.back = i & 1;
		status = lazy_run(&self->t.cpus, offline_and_end, &job);
		lazy_assert_exited(_metadata, status, 0);
		if (!job.back)
			ASSERT_TRUE(lazy_set_online(job.victim, true));
	}
}

/* CPUs come and go while processes on all of them fork, roam and exit. */
FIXTURE(hotplug_churn)
{
	struct lazy_test t;
	struct lazy_cpus can;
	struct lazy_tally *tally;
};

FIXTURE_SETUP(hotplug_churn)
{
	setup(_metadata, &self->t, &self->can);
	self->tally = mmap(NULL, sizeof(*self->tally), PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->tally);
}

FIXTURE_TEARDOWN(hotplug_churn)
{
	teardown(_metadata, &self->t, &self->can);
}

TEST_F_TIMEOUT(hotplug_churn, fork_roam_exit, LAZY_TIMEOUT)
{
	struct lazy_tally *tally = self->tally;
	long seen, exits[2] = { 0 };
	double end = lazy_now() + lazy_env("LAZY_TLB_SECONDS", 0);
	int i, online, cpu, status;
	double limit;
	pid_t pid;

	for (i = 0; i < self->t.cpus.nr; i++) {
		pid = fork();
		ASSERT_LE(0, pid);
		if (!pid)
			lazy_fork_roam_exit(&self->t.cpus, self->t.seed + i, tally);
	}

	for (i = 0; i < rounds(&self->can) || lazy_now() < end; i++) {
		cpu = self->can.cpu[i % self->can.nr];
		for (online = 0; online < 2; online++) {
			seen = atomic_load(&tally->exits);
			ASSERT_TRUE(lazy_set_online(cpu, online))
				TH_LOG("CPU %d: %s", cpu, strerror(errno));
			/* Some must have exited meanwhile and since. */
			limit = lazy_now() + 30;
			do {
				lazy_sleep_us(20000);
				pid = waitpid(-1, &status, WNOHANG);
				ASSERT_EQ(0, pid)
					TH_LOG("process %d ended with %#x", pid, status);
			} while (atomic_load(&tally->exits) < seen + 10 &&
				 lazy_now() < limit);
			exits[online] += atomic_load(&tally->exits) - seen;
			ASSERT_LE(seen + 10, atomic_load(&tally->exits));
		}
	}
	atomic_store(&tally->stop, true);
	for (i = 0; i < self->t.cpus.nr; i++) {
		ASSERT_LT(0, wait(&status));
		lazy_assert_exited(_metadata, status, 0);
	}
	TH_LOG("%d times: %ld exits while CPUs left or were away, %ld while they came back",
	       i, exits[0], exits[1]);
}

TEST_HARNESS_MAIN
