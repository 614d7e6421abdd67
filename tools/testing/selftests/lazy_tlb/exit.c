// SPDX-License-Identifier: GPL-2.0
/*
 * The final drop of an mm that other CPUs are still idle-lazy on, by exit and
 * by exec, after each way in which a CPU can have become lazy.
 *
 * Apart from what is asserted here, DEBUG_VM_SHOOT_LAZIES makes the kernel
 * itself look for CPUs that still use an mm when it is freed.
 */
#include "harness.h"

/* What this program returns when it is exec'ed to replace a dying mm. */
#define EXEC_CODE	42

FIXTURE(exit)
{
	struct lazy_test t;
};

FIXTURE_VARIANT(exit)
{
	enum lazy_how how;
};

FIXTURE_VARIANT_ADD(exit, blocked)
{
	.how = LAZY_BLOCK,
};

FIXTURE_VARIANT_ADD(exit, roamed)
{
	.how = LAZY_ROAM,
};

FIXTURE_VARIANT_ADD(exit, died)
{
	.how = LAZY_DIE,
};

FIXTURE_SETUP(exit)
{
	lazy_setup(_metadata, &self->t, true);
}

FIXTURE_TEARDOWN(exit)
{
	lazy_teardown(_metadata, &self->t);
}

struct job {
	enum lazy_how how;
	bool refcount;
	bool exec;
	bool unmap;		/* end by unmapping everything */
	long tables;		/* page tables to populate first */
	size_t table_span;	/* what one of them maps */
};

static struct lazy_crowd crowd;

/*
 * Touch one page in each of many page tables, so that freeing takes batches. To
 * read is enough: the table then points to the zero page.
 */
static void populate(const struct job *job)
{
	size_t size = job->table_span * job->tables;
	char *area, sum = 0;
	long i;

	area = mmap(NULL, size, PROT_READ,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (area == MAP_FAILED)
		lazy_fail("mmap of %zu bytes: %s", size, strerror(errno));
	/* EINVAL: a kernel without huge pages, which is as good. */
	if (madvise(area, size, MADV_NOHUGEPAGE) && errno != EINVAL)
		lazy_fail("MADV_NOHUGEPAGE: %s", strerror(errno));
	for (i = 0; i < job->tables; i++)
		sum |= area[i * job->table_span];
	if (sum)
		lazy_fail("a new mapping is not empty");
}

static void leave_lazies_and_end(const struct lazy_cpus *cpus, void *arg)
{
	const struct job *job = arg;
	struct lazy_self s;

	if (job->tables)
		populate(job);
	lazy_occupy(&crowd, cpus, cpus->nr - 1, job->how, &s);
	lazy_check_counts(job->refcount, "before the end");
	if (job->exec)
		lazy_exec_self(EXEC_CODE);
	if (job->unmap)
		lazy_unmap_everything();
}

/* One process after the other does the job; by turns, so that every other one execs. */
static void end_many(struct __test_metadata *_metadata, const struct lazy_test *t,
		     struct job *job, int nr, bool by_turns)
{
	int i, status;

	for (i = 0; i < nr; i++) {
		if (by_turns)
			job->exec = i & 1;
		status = lazy_run(&t->cpus, leave_lazies_and_end, job);
		if (job->unmap) {
			ASSERT_TRUE(WIFSIGNALED(status));
			ASSERT_EQ(SIGSEGV, WTERMSIG(status));
		} else {
			lazy_assert_exited(_metadata, status, job->exec ? EXEC_CODE : 0);
		}
	}
}

TEST_F_TIMEOUT(exit, lazies, LAZY_TIMEOUT)
{
	struct job job = { .how = variant->how, .refcount = self->t.refcount };

	end_many(_metadata, &self->t, &job, 20, false);
}

TEST_F_TIMEOUT(exit, lazies_exec, LAZY_TIMEOUT)
{
	struct job job = {
		.how = variant->how,
		.refcount = self->t.refcount,
		.exec = true,
	};

	end_many(_metadata, &self->t, &job, 20, false);
}

/*
 * With nothing mapped, exit_mmap() has nothing to flush. CPUs that are still lazy
 * when all is unmapped are left to the final drop. (On x86 with shootdown the
 * flush of the unmapping makes them let go.)
 */
TEST_F_TIMEOUT(exit, nothing_mapped, LAZY_TIMEOUT)
{
	struct job job = {
		.how = variant->how,
		.refcount = self->t.refcount,
		.unmap = true,
	};

	end_many(_metadata, &self->t, &job, 10, false);
}

/*
 * mmu_gather flushes whenever a page full of freed page tables came together.
 * More than two such flushes in one exit_mmap() let the second one meet CPUs
 * that the first has already sent away from the mm: on x86 that removes them
 * from mm_cpumask. They are lazy on it still, if they have not let go.
 */
TEST_F_TIMEOUT(exit, sparse, LAZY_TIMEOUT)
{
	struct job job = { .how = variant->how, .refcount = self->t.refcount };
	long page = sysconf(_SC_PAGESIZE);
	long entries = page / 8;
	double need, have;

	/*
	 * The largest a page table can be: one page. With smaller ones, as on
	 * powerpc with 64K pages, each page touched still has one of its own.
	 */
	job.table_span = (size_t)entries * page;
	job.tables = 2 * entries + entries / 4;
	need = 1.25 * page * job.tables;
	have = (double)sysconf(_SC_AVPHYS_PAGES) * page;
	if (need > have)
		SKIP(return, "needs %.0f MiB free memory", need / (1 << 20));
	ASSERT_LT(1UL << 30, job.table_span * job.tables);

	end_many(_metadata, &self->t, &job, 5, true);
}

/*
 * Who exits is lazy itself when it drops the mm: its CPU is handed a reference,
 * and so are all others that are still lazy. Those are interrupted with shootdown,
 * unless the flush has done that: one interrupt for each, or none.
 */
TEST_F_TIMEOUT(exit, handed, LAZY_TIMEOUT)
{
	struct job job = { .how = variant->how, .refcount = self->t.refcount };
	long handed, nudged, final_drops, slack = self->t.cpus.nr;
	long lazy = self->t.cpus.nr - 1;
	struct lazy_drops before, after;
	const int nr = 20;

	if (!lazy_drops(&before))
		SKIP(return, "no lazy_tlb_handed in /proc/vmstat");
	end_many(_metadata, &self->t, &job, nr, false);
	ASSERT_TRUE(lazy_drops(&after));
	final_drops = after.final_drops - before.final_drops;
	handed = after.handed - before.handed;
	nudged = after.nudged - before.nudged;
	TH_LOG("%ld CPUs handed a reference by %ld final drops, %ld of them interrupted",
	       handed, final_drops, nudged);

	if (self->t.refcount) {
		EXPECT_EQ(0, handed);
	} else {
		EXPECT_LE(nr, final_drops);
		/* Not every time: tasks of others take CPUs. */
		/* Few are preempted and go on elsewhere before they drop it. */
		EXPECT_LE(nr / 2 + (self->t.shootdown ? 0 : nr * lazy / 2), handed);
	}
	if (!self->t.shootdown) {
		EXPECT_EQ(0, nudged);
	} else {
		/* All but the CPU that drops. */
		EXPECT_GE(handed, nudged);
		EXPECT_LE(handed - final_drops - slack, nudged);
	}
}

int main(int argc, char **argv)
{
	lazy_exec_target(argc, argv);
	return test_harness_run(argc, argv);
}
