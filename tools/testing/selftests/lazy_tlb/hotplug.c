// SPDX-License-Identifier: GPL-2.0
/*
 * A CPU goes offline while it is lazy on an mm: it must let go of it, and the
 * final drop must not wait for it, whether it comes before or after its return.
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

static bool set_online(int cpu, bool online)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%d/online", cpu);
	return lazy_write_file(path, online ? "1" : "0");
}

FIXTURE_SETUP(hotplug)
{
	char path[64];
	int i, cpu;

	lazy_setup(_metadata, &self->t, true);
	if (_metadata->exit_code)
		return;
	for (i = 1; i < self->t.cpus.nr; i++) {
		cpu = self->t.cpus.cpu[i];
		snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%d/online", cpu);
		if (!access(path, W_OK))
			self->can.cpu[self->can.nr++] = cpu;
	}
	if (!self->can.nr)
		SKIP(return, "no CPU can be taken offline");
}

FIXTURE_TEARDOWN(hotplug)
{
	int i;

	for (i = 0; i < self->can.nr; i++)
		EXPECT_TRUE(set_online(self->can.cpu[i], true));
	lazy_teardown(_metadata, &self->t);
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
	struct lazy_self base, s;

	if (!lazy_self(&base))
		lazy_fail("cannot read " LAZY_TLB_DIR "self");
	lazy_occupy(&crowd, cpus, cpus->nr - 1, job->how, &s);
	if (!set_online(job->victim, false))
		lazy_fail("cannot take CPU %d offline: %s", job->victim, strerror(errno));
	if (!lazy_self(&s))
		lazy_fail("cannot read " LAZY_TLB_DIR "self");
	if (s.lazy_cpus > cpus->nr - 2)
		lazy_fail("CPU %d is offline, but %ld of %d CPUs are lazy",
			  job->victim, s.lazy_cpus, cpus->nr - 1);
	if (!lazy_counts_ok(job->refcount, &base, &s))
		lazy_fail("mm_count %ld before, %ld with %ld lazy CPUs",
			  base.mm_count, s.mm_count, s.lazy_cpus);
	if (job->back && !set_online(job->victim, true))
		lazy_fail("cannot bring CPU %d back: %s", job->victim, strerror(errno));
}

TEST_F_TIMEOUT(hotplug, offline_lazy, LAZY_TIMEOUT)
{
	struct job job = { .how = variant->how, .refcount = self->t.refcount };
	int i, rounds, status;

	/* Every CPU at least twice, but not hours on a large machine. */
	rounds = 2 * (self->can.nr < 8 ? self->can.nr : 8);
	for (i = 0; i < rounds; i++) {
		job.victim = self->can.cpu[i / 2 % self->can.nr];
		job.back = i & 1;
		status = lazy_run(&self->t.cpus, offline_and_end, &job);
		lazy_assert_exited(_metadata, status, 0);
		if (!job.back)
			ASSERT_TRUE(set_online(job.victim, true));
	}
}

TEST_HARNESS_MAIN
