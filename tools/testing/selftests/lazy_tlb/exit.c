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
#define EXEC_ARG	"--exec-target"
#define EXEC_CODE	42

/* Makes x86 flushes leave lazy CPUs alone, as those of some machines do. */
#define SKIP_LAZY_CPUS	"/sys/kernel/debug/x86/tlb_skip_lazy_cpus"

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
		EXPECT_TRUE(lazy_write_file(SKIP_LAZY_CPUS, "N"));
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
	char *const exec_argv[] = { "exit", EXEC_ARG, NULL };
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
	if (!lazy_counts_ok(job->refcount, &base, &s))
		lazy_fail("mm_count %ld before, %ld with %ld lazy CPUs",
			  base.mm_count, s.mm_count, s.lazy_cpus);
	if (job->exec) {
		execv("/proc/self/exe", exec_argv);
		lazy_fail("exec: %s", strerror(errno));
	}
	if (job->unmap)
		lazy_unmap_everything();
}

TEST_F_TIMEOUT(exit, lazies, LAZY_TIMEOUT)
{
	struct job job = { .how = variant->how, .refcount = self->t.refcount };
	int i, status;

	for (i = 0; i < 20; i++) {
		status = lazy_run(&self->t.cpus, leave_lazies_and_end, &job);
		lazy_assert_exited(_metadata, status, 0);
	}
}

TEST_F_TIMEOUT(exit, lazies_exec, LAZY_TIMEOUT)
{
	struct job job = {
		.how = variant->how,
		.refcount = self->t.refcount,
		.exec = true,
	};
	int i, status;

	for (i = 0; i < 20; i++) {
		status = lazy_run(&self->t.cpus, leave_lazies_and_end, &job);
		lazy_assert_exited(_metadata, status, EXEC_CODE);
	}
}

/*
 * With nothing mapped, exit_mmap() has nothing to flush. Nothing but the final
 * drop can make lazy CPUs let go, on any architecture. (Threads that are killed
 * do so when they exit.)
 */
TEST_F_TIMEOUT(exit, nothing_mapped, LAZY_TIMEOUT)
{
	struct job job = {
		.how = variant->how,
		.refcount = self->t.refcount,
		.unmap = true,
	};
	int i, status;

	for (i = 0; i < 10; i++) {
		status = lazy_run(&self->t.cpus, leave_lazies_and_end, &job);
		ASSERT_TRUE(WIFSIGNALED(status));
		ASSERT_EQ(SIGSEGV, WTERMSIG(status));
	}
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
	int i, status;

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

	for (i = 0; i < 5; i++) {
		job.exec = i & 1;
		status = lazy_run(&self->t.cpus, leave_lazies_and_end, &job);
		lazy_assert_exited(_metadata, status, job.exec ? EXEC_CODE : 0);
	}
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
	int i, status;

	if (access(SKIP_LAZY_CPUS, W_OK))
		SKIP(return, "no " SKIP_LAZY_CPUS);
	if (!found_remote(&before))
		SKIP(return, "no lazy_tlb_found_lazy in /proc/vmstat");
	ASSERT_TRUE(lazy_write_file(SKIP_LAZY_CPUS, "Y"));
	self->skipping = true;

	job.table_span = (size_t)page / 8 * page;
	for (i = 0; i < 20; i++) {
		job.exec = i & 1;
		status = lazy_run(&self->t.cpus, leave_lazies_and_end, &job);
		lazy_assert_exited(_metadata, status, job.exec ? EXEC_CODE : 0);
	}
	ASSERT_TRUE(found_remote(&after));
	remote = after - before;
	TH_LOG("%ld other CPUs found lazy by the final drops of %d mms", remote, i);
	if (self->t.refcount) {
		EXPECT_EQ(0, remote);
	} else if (variant->how == LAZY_BLOCK) {
		/* Two threads may each take the other for the last one. */
		EXPECT_GE(i / 2, remote);
	} else {
		/* Not every time: tasks of others take CPUs. */
		EXPECT_LE(i * lazy / 2, remote);
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
	int i, status;

	if (variant->how != LAZY_BLOCK)
		SKIP(return, "no thread is left to be killed");
	if (self->t.cpus.nr < 3)
		SKIP(return, "needs three CPUs");
	if (!found_remote(&before))
		SKIP(return, "no lazy_tlb_found_lazy in /proc/vmstat");
	for (i = 0; i < 20; i++) {
		status = lazy_run(&self->t.cpus, leave_lazies_and_end, &job);
		ASSERT_TRUE(WIFSIGNALED(status));
	}
	ASSERT_TRUE(found_remote(&after));
	TH_LOG("%ld other CPUs found lazy by the final drops of %d mms",
	       after - before, i);
	EXPECT_GE(i / 2, after - before);
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], EXEC_ARG))
		return EXEC_CODE;
	return test_harness_run(argc, argv);
}
