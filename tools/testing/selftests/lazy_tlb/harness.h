/* SPDX-License-Identifier: GPL-2.0 */
/* What every lazy_tlb test does before and after: kselftest_harness.h parts. */
#ifndef SELFTESTS_LAZY_TLB_HARNESS_H
#define SELFTESTS_LAZY_TLB_HARNESS_H

#include "kselftest_harness.h"
#include "lazy_tlb.h"

/*
 * Generous: an emulated, instrumented kernel is slow. Read when the program
 * starts, so that a test which is asked to run for long may.
 */
#define LAZY_TIMEOUT	((int)(240 + 2 * lazy_env("LAZY_TLB_SECONDS", 0)))

struct lazy_test {
	struct lazy_cpus cpus;
	long taint;
	bool known;		/* there is a policy to be read */
	char policy[32];
	bool refcount;
	bool shootdown;
	unsigned int seed;
};

/*
 * Without the file in debugfs a test cannot know whether any CPU was lazy, so it
 * must not claim to have tested anything: it skips.
 */
static inline void lazy_setup(struct __test_metadata *_metadata,
			      struct lazy_test *t, bool need_debugfs)
{
	struct lazy_self s;

	t->known = lazy_policy(t->policy, sizeof(t->policy));
	t->taint = lazy_taint();
	ASSERT_LE(0, t->taint);
	t->seed = lazy_env("LAZY_TLB_SEED", getpid() ^ time(NULL));
	t->refcount = t->known && !strcmp(t->policy, "refcount");
	t->shootdown = t->known && !strcmp(t->policy, "shootdown");
	if (need_debugfs && (!t->known || !lazy_self(&s)))
		SKIP(return, "no " LAZY_TLB_POLICY " or " LAZY_TLB_SELF);
	if (lazy_cpus_get(&t->cpus) < 2)
		SKIP(return, "needs two CPUs");
	TH_LOG("policy %s, %d CPUs, LAZY_TLB_SEED=%u",
	       t->known ? t->policy : "unknown", t->cpus.nr, t->seed);
}

static inline void lazy_teardown(struct __test_metadata *_metadata,
				 const struct lazy_test *t)
{
	EXPECT_EQ(t->taint, lazy_taint())
		TH_LOG("the kernel warned during this test");
}

/* @status is that of a process which must have ended by itself with @code. */
static inline void lazy_assert_exited(struct __test_metadata *_metadata,
				      int status, int code)
{
	ASSERT_TRUE(WIFEXITED(status))
		TH_LOG("wait status %#x", status);
	ASSERT_EQ(code, WEXITSTATUS(status));
}

/* ---- what is left over ------------------------------------------------ */

/* As many as may be there by chance: CPUs keep an mm each if they are idle. */
static inline long lazy_leftovers_room(const struct lazy_test *t,
				       const struct lazy_leftovers *before)
{
	/* Free objects in per-CPU caches count as used. */
	return before->exact ? 10 + 4 * t->cpus.nr : 50 + 50 * t->cpus.nr;
}

/* As many mms are left as there were before, and as many page tables. */
static inline void lazy_check_leftovers(struct __test_metadata *_metadata,
					const struct lazy_test *t,
					const struct lazy_leftovers *before)
{
	long room = lazy_leftovers_room(t, before), others;
	double end = lazy_now() + 30;
	struct lazy_leftovers now;
	bool more;
	int i;

	for (;;) {
		lazy_leftovers(&now);
		others = now.threads > before->threads ? now.threads - before->threads : 0;
		/* A process has some, an mm that is kept by a CPU has hardly any. */
		more = now.tables - before->tables > 4 * room + 16 * others;
		for (i = 0; i < LAZY_NR_SLABS; i++)
			more |= now.objects[i] - before->objects[i] > room + others;
		if (!more || lazy_now() >= end)
			break;
		lazy_sleep_us(100000);
	}
	for (i = 0; i < LAZY_NR_SLABS; i++)
		if (before->objects[i] >= 0)
			TH_LOG("%s objects %ld before, %ld after", lazy_slab_name[i],
			       before->objects[i], now.objects[i]);
		else if (!i)
			TH_LOG("left out: slab counts: no mm_struct in /proc/slabinfo");
	TH_LOG("pages of page tables %ld before, %ld after", before->tables, now.tables);
	EXPECT_FALSE(more);
}

#endif /* SELFTESTS_LAZY_TLB_HARNESS_H */
