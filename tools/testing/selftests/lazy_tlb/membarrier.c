// SPDX-License-Identifier: GPL-2.0
/*
 * membarrier(2) relies on a full barrier between a CPU's return from lazy to
 * user and the first user access there. Refcounting gave it for free. Here a
 * thread is woken from idle again and again, and its accesses, the first ones
 * and some more, race against a private expedited membarrier, see race.h.
 *
 * A machine that never shows the forbidden outcome without membarrier either
 * cannot tell anything: then the test skips.
 */
#include "race.h"

FIXTURE(membarrier)
{
	struct lazy_test t;
};

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
	double seconds = lazy_env("LAZY_TLB_SECONDS", 5);
	struct lazy_race_outcome with, without;

	if (lazy_membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED))
		SKIP(return, "no private expedited membarrier: %s", strerror(errno));
	ASSERT_TRUE(lazy_pin(0, self->t.cpus.cpu[0]));
	race.cpu = self->t.cpus.cpu[1];
	race.burst = 20;

	race.seed = self->t.seed;
	race.seconds = seconds / 2;
	lazy_race(&race, &without);
	TH_LOG("without membarrier: %ld rounds, woken first %ld, later %ld, both saw 0 %ld",
	       without.rounds, without.early, without.late, without.forbidden);
	race.seed = self->t.seed;
	race.seconds = seconds;
	race.cmd = MEMBARRIER_CMD_PRIVATE_EXPEDITED;
	lazy_race(&race, &with);
	TH_LOG("with membarrier: %ld rounds, woken first %ld, later %ld, both saw 0 %ld",
	       with.rounds, with.early, with.late, with.forbidden);

	EXPECT_EQ(0, with.failed);
	EXPECT_EQ(0, with.forbidden);
	/* A race that always goes the same way shows nothing. */
	EXPECT_LT(0, with.early);
	EXPECT_LT(0, with.late);
	if (!_metadata->exit_code && !without.forbidden)
		SKIP(return, "no reordering seen without membarrier either");
}

TEST_HARNESS_MAIN
