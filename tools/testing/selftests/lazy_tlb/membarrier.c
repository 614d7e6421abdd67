// SPDX-License-Identifier: GPL-2.0
/*
 * membarrier(2) relies on a full barrier between a CPU's return from lazy to
 * user and the first user access there. Refcounting gave it for free. Here a
 * thread is woken from idle again and again, and its accesses, the first ones
 * and some more, race against membarrier(2), see race.h. Before it is woken, its
 * CPU is left as it is, or made to let go of the mm where a flush does that, or
 * another thread has exited there.
 *
 * A machine that never shows the forbidden outcome without membarrier either
 * cannot tell anything, nor can a race that always goes the same way: then the
 * test skips.
 */
#include "harness.h"
#include "race.h"

FIXTURE(membarrier)
{
	struct lazy_test t;
};

FIXTURE_VARIANT(membarrier)
{
	int register_cmd;
	int cmd;
	void (*between)(const struct lazy_race *race);
};

/* Free page tables: with shootdown, x86 and powerpc make lazy CPUs let go. */
static void let_go(const struct lazy_race *race)
{
	size_t page = sysconf(_SC_PAGESIZE), span = page / 8 * page;
	char *area;

	(void)race;
	area = mmap(NULL, 2 * span, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (area == MAP_FAILED)
		lazy_fail("mmap: %s", strerror(errno));
	madvise(area, 2 * span, MADV_NOHUGEPAGE);
	area[span] = 1;
	if (munmap(area, 2 * span))
		lazy_fail("munmap: %s", strerror(errno));
}

static void *go_and_exit(void *race)
{
	lazy_pin(0, ((const struct lazy_race *)race)->cpu);
	return NULL;
}

/* The CPU is lazy because of a thread that is gone. */
static void exit_there(const struct lazy_race *race)
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, go_and_exit, (void *)race))
		lazy_fail("pthread_create failed");
	pthread_join(thread, NULL);
}

#define PRIVATE								\
	.register_cmd = MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED,	\
	.cmd = MEMBARRIER_CMD_PRIVATE_EXPEDITED

#define SYNC_CORE							\
	.register_cmd = MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE, \
	.cmd = MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE

#define GLOBAL								\
	.register_cmd = MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED,	\
	.cmd = MEMBARRIER_CMD_GLOBAL_EXPEDITED

FIXTURE_VARIANT_ADD(membarrier, private) { PRIVATE };
FIXTURE_VARIANT_ADD(membarrier, private_let_go) { PRIVATE, .between = let_go };
FIXTURE_VARIANT_ADD(membarrier, private_exit) { PRIVATE, .between = exit_there };
FIXTURE_VARIANT_ADD(membarrier, sync_core_let_go) { SYNC_CORE, .between = let_go };
FIXTURE_VARIANT_ADD(membarrier, global_let_go) { GLOBAL, .between = let_go };
FIXTURE_VARIANT_ADD(membarrier, global_exit) { GLOBAL, .between = exit_there };

FIXTURE_SETUP(membarrier)
{
	lazy_setup(_metadata, &self->t, false);
}

FIXTURE_TEARDOWN(membarrier)
{
	lazy_teardown(_metadata, &self->t);
}

static struct lazy_race race;

TEST_F_TIMEOUT(membarrier, wake_from_lazy, LAZY_TIMEOUT)
{
	double seconds = lazy_env("LAZY_TLB_SECONDS", 3);
	struct lazy_race_outcome with, without = {};
	int i;

	if (lazy_membarrier(variant->register_cmd))
		SKIP(return, "membarrier(2) has no such command: %s", strerror(errno));
	ASSERT_TRUE(lazy_pin(0, self->t.cpus.cpu[0]));
	race.cpu = self->t.cpus.cpu[1];
	race.burst = 20;
	race.between = variant->between;

	race.seconds = seconds / 2;
	/* A busy machine may need more than one attempt to show it. */
	for (i = 0; i < 4 && !without.forbidden; i++) {
		race.seed = self->t.seed + i;
		lazy_race(&race, &without);
		TH_LOG("without membarrier: %ld rounds, woken first %ld, later %ld, both saw 0 %ld",
		       without.rounds, without.early, without.late, without.forbidden);
	}
	race.seed = self->t.seed;
	race.seconds = seconds;
	race.cmd = variant->cmd;
	/* Most barriers are to meet a thread that was just woken. */
	race.burst = 2;
	lazy_race(&race, &with);
	TH_LOG("with membarrier: %ld rounds, woken first %ld, later %ld, both saw 0 %ld",
	       with.rounds, with.early, with.late, with.forbidden);

	EXPECT_EQ(0, with.failed)
		TH_LOG("membarrier: %s", strerror(with.error));
	EXPECT_EQ(0, with.forbidden);
	if (!_metadata->exit_code && !without.forbidden)
		SKIP(return, "no reordering seen without membarrier either");
	if (!_metadata->exit_code && (!with.early || !with.late))
		SKIP(return, "one of the two threads was always first");
}

TEST_HARNESS_MAIN
