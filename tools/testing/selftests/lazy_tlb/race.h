/* SPDX-License-Identifier: GPL-2.0 */
/*
 * One thread's accesses race against membarrier(2) in another:
 *
 *	woken thread:	x = 1; (compiler barrier)       saw_y = y;
 *	this thread:	y = 1; membarrier(2);           saw_x = x;
 *
 * Not both may have seen 0.
 */
#ifndef SELFTESTS_LAZY_TLB_RACE_H
#define SELFTESTS_LAZY_TLB_RACE_H

#include "kselftest.h"
#include "lazy_tlb.h"

#include <linux/membarrier.h>

static inline int lazy_membarrier(int cmd)
{
	return syscall(SYS_membarrier, cmd, 0, 0);
}

/* So large that no two share a cache line. */
struct lazy_line {
	atomic_uint v;
	char pad[252];
};

struct lazy_race {
	/* Set by the caller, before the first race; the rest is zero. */
	int cpu;		/* the woken thread's; the caller stays on its own */
	int cmd;		/* of membarrier(2), 0 for none */
	unsigned int burst;	/* rounds from one wake-up to the next */
	double seconds;		/* one burst at least */
	bool crowded;		/* others run on these CPUs, which may be offline */
	void (*between)(const struct lazy_race *race);	/* while the other is blocked */
	unsigned int seed;

	struct lazy_line round;	/* futex; UINT_MAX ends */
	struct lazy_line done;
	struct lazy_line x;
	struct lazy_line y;
	struct lazy_line busy[8];
	struct lazy_line delay;
	unsigned int saw_y;
};

struct lazy_race_outcome {
	long rounds;
	long early;	/* the woken thread was first */
	long late;
	long forbidden;
	long failed;	/* calls of membarrier */
	int error;	/* of the last of these */
};

static inline void lazy_put(struct lazy_line *line, unsigned int value)
{
	atomic_store_explicit(&line->v, value, memory_order_relaxed);
}

static inline unsigned int lazy_get(struct lazy_line *line)
{
	return atomic_load_explicit(&line->v, memory_order_relaxed);
}

/* In a loop that waits for the other thread, which may need this very CPU. */
static inline void lazy_race_relax(const struct lazy_race *race)
{
	if (race->crowded)
		sched_yield();
}

static inline void *lazy_race_woken(void *arg)
{
	struct lazy_race *race = arg;
	unsigned int seen = 0;
	size_t i;

	if (!lazy_pin(0, race->cpu) && !race->crowded)
		lazy_fail("cannot run on CPU %d: %s", race->cpu, strerror(errno));
	atomic_store(&race->done.v, seen);
	for (;;) {
		while (lazy_get(&race->round) == seen) {
			if (seen % race->burst == 0)
				lazy_futex(&race->round.v, FUTEX_WAIT, seen);
			else
				lazy_race_relax(race);
		}
		/* No barrier from here on but those of the wake-up itself. */
		for (i = 0; i < ARRAY_SIZE(race->busy); i++)
			lazy_put(&race->busy[i], 1);	/* keeps the store of x waiting */
		lazy_put(&race->x, 1);
		atomic_signal_fence(memory_order_seq_cst);
		race->saw_y = lazy_get(&race->y);

		seen = atomic_load(&race->round.v);
		if (seen == UINT_MAX)
			return NULL;
		atomic_store(&race->done.v, seen);
	}
}

static inline void lazy_race(struct lazy_race *race, struct lazy_race_outcome *out)
{
	/* The rounds that begin with a wake-up have their own. */
	unsigned int windows[2] = { 4096, 256 }, *window, delay;
	unsigned int round = 0;
	pthread_t thread;
	double end;
	bool saw_x;
	size_t i;

	memset(out, 0, sizeof(*out));
	atomic_store(&race->round.v, 0);
	atomic_store(&race->done.v, UINT_MAX);
	if (pthread_create(&thread, NULL, lazy_race_woken, race))
		lazy_fail("pthread_create failed");
	while (atomic_load(&race->done.v))
		lazy_sleep_us(100);

	end = lazy_now() + race->seconds;
	do {
		window = &windows[round % race->burst != 0];
		/* Let the other thread block, and its CPU become lazy. */
		if (round % race->burst == 0) {
			lazy_sleep_us(lazy_random(&race->seed) % 200);
			if (race->between)
				race->between(race);
		}
		for (i = 0; i < ARRAY_SIZE(race->busy); i++)
			lazy_put(&race->busy[i], 0);
		lazy_put(&race->x, 0);
		lazy_put(&race->y, 0);
		delay = lazy_random(&race->seed) % *window;
		atomic_store(&race->round.v, ++round);
		if (round % race->burst == 1 % race->burst)
			lazy_futex(&race->round.v, FUTEX_WAKE, 1);

		/* A clock would be too coarse, above all in an emulator. */
		while (delay)
			lazy_put(&race->delay, --delay);
		lazy_put(&race->y, 1);
		if (!race->cmd) {
			atomic_signal_fence(memory_order_seq_cst);
		} else if (lazy_membarrier(race->cmd)) {
			out->failed++;
			out->error = errno;
		}
		saw_x = lazy_get(&race->x);

		while (atomic_load(&race->done.v) != round)
			lazy_race_relax(race);
		out->rounds++;
		out->early += saw_x;
		out->late += !saw_x;
		out->forbidden += !saw_x && !race->saw_y;
		/* Aim at the other's first access: both orders equally often. */
		if (saw_x && *window > 2)
			*window -= *window / 8 + 1;
		else if (!saw_x && *window < 1 << 26)
			*window += *window / 8 + 1;
	} while (lazy_now() < end || round % race->burst);
	atomic_store(&race->round.v, UINT_MAX);
	lazy_futex(&race->round.v, FUTEX_WAKE, 1);
	pthread_join(thread, NULL);
}

#endif /* SELFTESTS_LAZY_TLB_RACE_H */
