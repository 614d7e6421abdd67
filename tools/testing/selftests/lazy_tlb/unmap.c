// SPDX-License-Identifier: GPL-2.0
/*
 * munmap() that frees page tables while other CPUs are idle-lazy, then exit.
 *
 * On x86 such a flush moves a lazy CPU to init_mm in hardware. With
 * lazy_tlb=shootdown the CPU lets go of the mm by that. Otherwise it must stay
 * lazy: active_mm and its slot have the mm as before.
 */
#include "harness.h"

FIXTURE(unmap)
{
	struct lazy_test t;
};

FIXTURE_VARIANT(unmap)
{
	enum lazy_how how;
};

FIXTURE_VARIANT_ADD(unmap, blocked)
{
	.how = LAZY_BLOCK,
};

FIXTURE_VARIANT_ADD(unmap, roamed)
{
	.how = LAZY_ROAM,
};

FIXTURE_VARIANT_ADD(unmap, died)
{
	.how = LAZY_DIE,
};

FIXTURE_SETUP(unmap)
{
	lazy_setup(_metadata, &self->t, true);
}

FIXTURE_TEARDOWN(unmap)
{
	lazy_teardown(_metadata, &self->t);
}

struct job {
	enum lazy_how how;
	bool refcount;
	bool stays;	/* a flush does not end that a CPU is lazy */
	int unmaps;
	bool relazy;	/* make the CPUs lazy anew before the last munmap */
};

/* What the process returns if a CPU was not lazy any more. */
#define ENDED	3

static struct lazy_crowd crowd;

static void unmap_and_end(const struct lazy_cpus *cpus, void *arg)
{
	const struct job *job = arg;
	size_t page = sysconf(_SC_PAGESIZE);
	size_t span = page / 8 * page;
	struct lazy_self s;
	char *area, *part;
	int i;

	/* Every second span is touched: its page table has no other user. */
	area = mmap(NULL, span * (2 * job->unmaps + 2), PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (area == MAP_FAILED)
		lazy_fail("mmap: %s", strerror(errno));
	if (madvise(area, span * (2 * job->unmaps + 2), MADV_NOHUGEPAGE) && errno != EINVAL)
		lazy_fail("MADV_NOHUGEPAGE: %s", strerror(errno));
	area = (char *)(((uintptr_t)area + span - 1) / span * span);
	for (i = 0; i < job->unmaps; i++)
		area[2 * i * span] = 1;

	lazy_occupy(&crowd, cpus, cpus->nr - 1, job->how, &s);
	for (i = 0; i < job->unmaps; i++) {
		part = area + 2 * i * span;
		if (job->relazy && i == job->unmaps - 1)
			lazy_occupy(&crowd, cpus, cpus->nr - 1, job->how, &s);
		if (munmap(part, span))
			lazy_fail("munmap: %s", strerror(errno));
	}
	lazy_self_or_fail(&s);
	lazy_check_counts(job->refcount, "after munmap");

	/*
	 * Blocked threads die on this CPU, not on theirs: there the idle task
	 * stays as the flushes left it.
	 */
	if (job->how == LAZY_BLOCK)
		for (i = 0; i < crowd.nr; i++)
			if (!lazy_pin(crowd.helper[i].tid, cpus->cpu[0]))
				lazy_fail("cannot move a thread: %s", strerror(errno));
	lazy_check_counts(job->refcount, "before exit");
	_exit(job->stays && s.lazies < cpus->nr - 1 ? ENDED : 0);
}

/*
 * With the radix MMU of powerpc, flushes of a process with one thread take other
 * CPUs out of mm_cpumask(), for which they leave the mm, whatever the policy.
 */
static bool flush_trims(void)
{
	FILE *f = fopen("/proc/cpuinfo", "r");
	bool radix = false;
	char *line = NULL;
	size_t size = 0;

	while (f && !radix && getline(&line, &size, f) > 0)
		radix = !strncmp(line, "MMU", 3) && strstr(line, "Radix");
	free(line);
	if (f)
		fclose(f);
	return radix;
}

#define ROUNDS	60

/* Rounds differ in the number of flushes that free page tables. */
TEST_F_TIMEOUT(unmap, freed_tables, LAZY_TIMEOUT)
{
	struct job job = {
		.how = variant->how,
		.refcount = self->t.refcount,
		.stays = !self->t.shootdown && !flush_trims(),
	};
	int i, status, ended = 0;

	for (i = 0; i < ROUNDS; i++) {
		job.unmaps = 1 + i % 3;
		job.relazy = i / 3 % 2;
		status = lazy_run(&self->t.cpus, unmap_and_end, &job);
		ASSERT_TRUE(WIFEXITED(status));
		if (WEXITSTATUS(status) == ENDED)
			ended++;
		else
			lazy_assert_exited(_metadata, status, 0);
	}
	/* Now and then another task takes a CPU. */
	EXPECT_GT(ROUNDS / 2, ended);
}

TEST_HARNESS_MAIN
