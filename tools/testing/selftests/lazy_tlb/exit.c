// SPDX-License-Identifier: GPL-2.0
/*
 * The final drop of an mm that other CPUs are still idle-lazy on, by exit and
 * by exec, after each way in which a CPU can have become lazy.
 *
 * Apart from what is asserted here, DEBUG_VM_SHOOT_LAZIES makes the kernel
 * itself look for CPUs that kept the dead mm.
 */
#include "harness.h"

/* What this program returns when it is exec'ed to replace a dying mm. */
#define EXEC_CODE	42

FIXTURE(exit)
{
	struct lazy_test t;
	bool skipping;
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
	if (self->skipping)
		EXPECT_TRUE(lazy_write_file(LAZY_SKIP_FLUSH, "N"));
	lazy_teardown(_metadata, &self->t);
}

struct job {
	enum lazy_how how;
	bool refcount;
	bool exec;
	bool unmap;		/* end by unmapping everything */
	bool skipped;		/* flushes leave lazy CPUs alone */
	long tables;		/* page tables to populate first */
	size_t table_span;	/* what one of them maps */
};

static struct lazy_crowd crowd;

/*
 * Touch one page in each of many page tables, so that freeing takes batches. To
 * read is enough: the table then points to the zero page.
 */
static char *populate(const struct job *job)
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
	return area;
}

/* Free page tables, and see that CPUs stay lazy nevertheless. */
static void unmap_under_lazies(const struct job *job, const struct lazy_cpus *cpus,
			       struct lazy_self *s)
{
	int lazy = cpus->nr - 1;
	int attempt;
	char *area;

	for (attempt = 0; attempt < 20; attempt++) {
		area = populate(job);
		lazy_occupy(&crowd, cpus, lazy, job->how, s);
		if (munmap(area, job->table_span * job->tables))
			lazy_fail("munmap: %s", strerror(errno));
		if (!lazy_self(s))
			lazy_fail("cannot read " LAZY_TLB_DIR "self");
		/* Another task may have taken a CPU. */
		if (s->lazy_cpus == lazy)
			return;
	}
	lazy_fail("%ld of %d CPUs stayed lazy when page tables were freed",
		  s->lazy_cpus, lazy);
}

/* How many CPUs but its own a final drop has found lazy, so far. */
static bool found_remote(long *remote)
{
	long found, local;

	if (!lazy_vmstat("lazy_tlb_found_lazy", &found) ||
	    !lazy_vmstat("lazy_tlb_local", &local))
		return false;
	*remote = found - local;
	return true;
}

static void leave_lazies_and_end(const struct lazy_cpus *cpus, void *arg)
{
	const struct job *job = arg;
	struct lazy_self base, s;

	if (job->tables && !job->skipped)
		populate(job);
	if (!lazy_self(&base))
		lazy_fail("cannot read " LAZY_TLB_DIR "self");
	if (job->skipped)
		unmap_under_lazies(job, cpus, &s);
	else
		lazy_occupy(&crowd, cpus, cpus->nr - 1, job->how, &s);
	lazy_check_counts(job->refcount, &base, "before the end");
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
 * when all is unmapped are left to the final drop, on any architecture. (On x86
 * the flush of the unmapping makes them let go, and threads that are killed do so
 * when they exit.)
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
 * from mm_cpumask.
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
 * INVLPGB and hypervisors flush without interrupting lazy CPUs. Those are lazy
 * until the final drop, which has to find them. But where a thread is still
 * there to be killed it leaves the mm when it exits, so that the CPU is not lazy
 * any more when the last thread drops it.
 */
TEST_F_TIMEOUT(exit, skipped_by_flush, LAZY_TIMEOUT)
{
	struct job job = {
		.how = variant->how,
		.refcount = self->t.refcount,
		.skipped = true,
		.tables = 4,
	};
	long page = sysconf(_SC_PAGESIZE);
	long lazy = self->t.cpus.nr - 1;
	long before, after, remote;
	const int nr = 20;

	if (access(LAZY_SKIP_FLUSH, W_OK))
		SKIP(return, "no " LAZY_SKIP_FLUSH);
	if (!found_remote(&before))
		SKIP(return, "no lazy_tlb_found_lazy in /proc/vmstat");
	ASSERT_TRUE(lazy_write_file(LAZY_SKIP_FLUSH, "Y"));
	self->skipping = true;

	job.table_span = (size_t)page / 8 * page;
	end_many(_metadata, &self->t, &job, nr, true);
	ASSERT_TRUE(found_remote(&after));
	remote = after - before;
	TH_LOG("%ld other CPUs found lazy by the final drops of %d mms", remote, nr);
	if (self->t.refcount) {
		EXPECT_EQ(0, remote);
	} else if (variant->how == LAZY_BLOCK) {
		/* Two threads may each take the other for the last one. */
		EXPECT_GE(nr / 2, remote);
	} else {
		/* Not every time: tasks of others take CPUs. */
		EXPECT_LE(nr * lazy / 2, remote);
	}
}

/*
 * The same on every architecture: with nothing mapped, no flush has anything to
 * do with it.
 */
TEST_F_TIMEOUT(exit, killed_threads_let_go, LAZY_TIMEOUT)
{
	struct job job = {
		.how = variant->how,
		.refcount = self->t.refcount,
		.unmap = true,
	};
	long before, after;
	const int nr = 20;

	if (variant->how != LAZY_BLOCK)
		SKIP(return, "no thread is left to be killed");
	if (self->t.cpus.nr < 3)
		SKIP(return, "needs three CPUs");
	if (!found_remote(&before))
		SKIP(return, "no lazy_tlb_found_lazy in /proc/vmstat");
	end_many(_metadata, &self->t, &job, nr, false);
	ASSERT_TRUE(found_remote(&after));
	TH_LOG("%ld other CPUs found lazy by the final drops of %d mms",
	       after - before, nr);
	EXPECT_GE(nr / 2, after - before);
}

/*
 * On x86 the flush of the last thread interrupts the CPUs in mm_cpumask. Those
 * that the other threads were killed on have left it.
 */
TEST_F_TIMEOUT(exit, killed_threads_are_not_flushed, LAZY_TIMEOUT)
{
	struct job job = { .how = variant->how, .refcount = self->t.refcount };
	const int nr = 20;
	long before, after;

	if (variant->how != LAZY_BLOCK)
		SKIP(return, "no thread is left to be killed");
	if (self->t.refcount)
		SKIP(return, "a CPU that is refcounted stays lazy");
	before = lazy_irqs(lazy_tlb_call);
	if (before < 0)
		SKIP(return, "no TLB flushes in /proc/interrupts");
	end_many(_metadata, &self->t, &job, nr, false);
	after = lazy_irqs(lazy_tlb_call);
	TH_LOG("%ld interrupts for the TLB flushes of %d mms", after - before, nr);
	EXPECT_GE(nr / 2, after - before);
}

int main(int argc, char **argv)
{
	lazy_exec_target(argc, argv);
	return test_harness_run(argc, argv);
}
