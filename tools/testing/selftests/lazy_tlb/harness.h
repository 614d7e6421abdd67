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
	bool refcount;
	unsigned int seed;
};

/*
 * Without the debugfs files a test cannot know whether any CPU was lazy, so it
 * must not claim to have tested anything: it skips.
 */
static inline void lazy_setup(struct __test_metadata *_metadata,
			      struct lazy_test *t, bool need_debugfs)
{
	char policy[32];

	t->known = lazy_policy(policy, sizeof(policy));
	t->taint = lazy_taint();
	ASSERT_LE(0, t->taint);
	t->seed = lazy_env("LAZY_TLB_SEED", getpid() ^ time(NULL));
	t->refcount = t->known && !strcmp(policy, "refcount");
	if (need_debugfs && !t->known)
		SKIP(return, "no " LAZY_TLB_DIR "policy");
	if (lazy_cpus_get(&t->cpus) < 2)
		SKIP(return, "needs two CPUs");
	TH_LOG("policy %s, %d CPUs, LAZY_TLB_SEED=%u",
	       t->known ? policy : "unknown", t->cpus.nr, t->seed);
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

#endif /* SELFTESTS_LAZY_TLB_HARNESS_H */
