// SPDX-License-Identifier: GPL-2.0
/*
 * What being lazy costs: with k CPUs lazy on an mm, its mm_count is k higher in
 * refcount mode, and not higher at all in every other.
 */
#include "harness.h"

#include <linux/membarrier.h>

FIXTURE(accounting)
{
	struct lazy_test t;
};

FIXTURE_VARIANT(accounting)
{
	enum lazy_how how;
};

FIXTURE_VARIANT_ADD(accounting, blocked)
{
	.how = LAZY_BLOCK,
};

FIXTURE_VARIANT_ADD(accounting, roamed)
{
	.how = LAZY_ROAM,
};

FIXTURE_VARIANT_ADD(accounting, died)
{
	.how = LAZY_DIE,
};

FIXTURE_SETUP(accounting)
{
	lazy_setup(_metadata, &self->t, true);
}

FIXTURE_TEARDOWN(accounting)
{
	lazy_teardown(_metadata, &self->t);
}

struct job {
	enum lazy_how how;
	bool refcount;
	int lazy;
	bool kthreads;
};

static struct lazy_crowd crowd;

static void count(const struct lazy_cpus *cpus, void *arg)
{
	const struct job *job = arg;
	struct lazy_self s;
	int attempt;

	lazy_self_or_fail(&s);
	if (s.lazies || s.mm_users != 1)
		lazy_fail("a new mm has %ld users and %ld lazy CPUs",
			  s.mm_users, s.lazies);

	for (attempt = 0; attempt < 20; attempt++) {
		lazy_occupy(&crowd, cpus, job->lazy, job->how, &s);
		if (job->kthreads) {
			/* RCU's threads run meanwhile: kernel to kernel. */
			if (syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0))
				lazy_fail("membarrier: %s", strerror(errno));
			lazy_sleep_us(20000);
			lazy_self_or_fail(&s);
		}
		/* The others are seen one by one, after mm_count was. */
		if (s.mm_count == lazy_base + (job->refcount ? job->lazy : 0) &&
		    s.lazy_cpus == (job->refcount ? 0 : job->lazy))
			break;
	}
	if (attempt == 20)
		lazy_fail("mm_count %ld, with %d lazy CPUs %ld, %ld not counted (%s mode)",
			  lazy_base, job->lazy, s.mm_count, s.lazy_cpus,
			  job->refcount ? "refcount" : "another");
	if (job->how == LAZY_BLOCK && s.mm_users != 1 + job->lazy)
		lazy_fail("%ld mm_users with %d helper threads", s.mm_users, job->lazy);
}

TEST_F_TIMEOUT(accounting, mm_count, LAZY_TIMEOUT)
{
	struct job job = { .how = variant->how, .refcount = self->t.refcount };
	int status;

	for (job.lazy = 0; job.lazy < self->t.cpus.nr; job.lazy++) {
		status = lazy_run(&self->t.cpus, count, &job);
		lazy_assert_exited(_metadata, status, 0);
	}
}

/* A CPU stays lazy on an mm while one kernel thread after another runs there. */
TEST_F_TIMEOUT(accounting, kernel_threads, LAZY_TIMEOUT)
{
	struct job job = {
		.how = variant->how,
		.refcount = self->t.refcount,
		.lazy = self->t.cpus.nr - 1,
		.kthreads = true,
	};
	int status;

	if (syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0))
		SKIP(return, "no membarrier(2): %s", strerror(errno));
	status = lazy_run(&self->t.cpus, count, &job);
	lazy_assert_exited(_metadata, status, 0);
}

TEST_HARNESS_MAIN
