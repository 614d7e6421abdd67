// SPDX-License-Identifier: GPL-2.0
/*
 * membarrier(2) relies on a full barrier between a CPU's return from lazy to
 * user and the first user access there. Refcounting gave it for free. Here a
 * thread is woken from idle again and again, and its accesses, the first ones
 * and some more, race against a private expedited membarrier:
 *
 *	woken thread:	x = 1; (compiler barrier)       saw_y = y;
 *	this thread:	y = 1; membarrier(2);           saw_x = x;
 *
 * Not both may have seen 0. A machine that never shows this without membarrier
 * either cannot tell anything: then the test skips.
 */
#include "harness.h"

#include <linux/membarrier.h>

/* Rounds from one wake-up to the next. */
#define BURST	20

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

static int membarrier(int cmd)
{
	return syscall(SYS_membarrier, cmd, 0, 0);
}

/* So large that no two share a cache line. */
struct line {
	atomic_uint v;
	char pad[252];
};

struct shared {
	struct line round;	/* futex; UINT_MAX ends */
	struct line done;
	struct line x;
	struct line y;
	struct line busy[8];
	struct line delay;
	unsigned int saw_y;
	int cpu;
};

static struct shared shared;

static void put(struct line *line, unsigned int value)
{
	atomic_store_explicit(&line->v, value, memory_order_relaxed);
}

static unsigned int get(struct line *line)
{
	return atomic_load_explicit(&line->v, memory_order_relaxed);
}

static void *woken_thread(void *arg)
{
	struct shared *s = arg;
	unsigned int seen = 0;
	size_t i;

	if (!lazy_pin(0, s->cpu))
		lazy_fail("cannot run on CPU %d: %s", s->cpu, strerror(errno));
	atomic_store(&s->done.v, seen);
	for (;;) {
		while (get(&s->round) == seen)
			if (seen % BURST == 0)
				lazy_futex(&s->round.v, FUTEX_WAIT, seen);
		/* No barrier from here on but those of the wake-up itself. */
		for (i = 0; i < ARRAY_SIZE(s->busy); i++)
			put(&s->busy[i], 1);	/* keeps the store of x waiting */
		put(&s->x, 1);
		atomic_signal_fence(memory_order_seq_cst);
		s->saw_y = get(&s->y);

		seen = atomic_load(&s->round.v);
		if (seen == UINT_MAX)
			return NULL;
		atomic_store(&s->done.v, seen);
	}
}

struct outcome {
	long rounds;
	long early;	/* the woken thread was first */
	long late;
	long forbidden;
	long failed;	/* calls of membarrier */
};

static void race(const struct lazy_cpus *cpus, unsigned int seed, bool barrier,
		 double seconds, struct outcome *out)
{
	/* The rounds that begin with a wake-up have their own. */
	unsigned int windows[2] = { 4096, 256 }, *window, delay;
	struct shared *s = &shared;
	unsigned int round = 0;
	pthread_t thread;
	double end;
	bool saw_x;
	size_t i;

	memset(out, 0, sizeof(*out));
	memset(s, 0, sizeof(*s));
	s->cpu = cpus->cpu[1];
	atomic_store(&s->done.v, UINT_MAX);
	if (pthread_create(&thread, NULL, woken_thread, s))
		lazy_fail("pthread_create failed");
	while (atomic_load(&s->done.v))
		lazy_sleep_us(100);

	end = lazy_now() + seconds;
	while (lazy_now() < end || round % BURST) {
		window = &windows[round % BURST != 0];
		/* Let the other thread block, and its CPU become lazy. */
		if (round % BURST == 0)
			lazy_sleep_us(lazy_random(&seed) % 200);
		for (i = 0; i < ARRAY_SIZE(s->busy); i++)
			put(&s->busy[i], 0);
		put(&s->x, 0);
		put(&s->y, 0);
		delay = lazy_random(&seed) % *window;
		atomic_store(&s->round.v, ++round);
		if (round % BURST == 1)
			lazy_futex(&s->round.v, FUTEX_WAKE, 1);

		/* A clock would be too coarse, above all in an emulator. */
		while (delay)
			put(&s->delay, --delay);
		put(&s->y, 1);
		if (barrier)
			out->failed += !!membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED);
		else
			atomic_signal_fence(memory_order_seq_cst);
		saw_x = get(&s->x);

		while (atomic_load(&s->done.v) != round)
			;
		out->rounds++;
		out->early += saw_x;
		out->late += !saw_x;
		out->forbidden += !saw_x && !s->saw_y;
		/* Aim at the other's first access: both orders equally often. */
		if (saw_x && *window > 2)
			*window -= *window / 8 + 1;
		else if (!saw_x && *window < 1 << 26)
			*window += *window / 8 + 1;
	}
	atomic_store(&s->round.v, UINT_MAX);
	lazy_futex(&s->round.v, FUTEX_WAKE, 1);
	pthread_join(thread, NULL);
}

TEST_F_TIMEOUT(membarrier, wake_from_lazy, LAZY_TIMEOUT)
{
	double seconds = lazy_env("LAZY_TLB_SECONDS", 5);
	struct outcome with, without;

	if (membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED))
		SKIP(return, "no private expedited membarrier: %s", strerror(errno));
	ASSERT_TRUE(lazy_pin(0, self->t.cpus.cpu[0]));

	race(&self->t.cpus, self->t.seed, false, seconds / 2, &without);
	TH_LOG("without membarrier: %ld rounds, woken first %ld, later %ld, both saw 0 %ld",
	       without.rounds, without.early, without.late, without.forbidden);
	race(&self->t.cpus, self->t.seed, true, seconds, &with);
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
