// SPDX-License-Identifier: GPL-2.0
/*
 * The final drop of an mm that other CPUs are still idle-lazy on, by exit and
 * by exec, after each way in which a CPU can have become lazy.
 *
 * Apart from what is asserted here, DEBUG_VM_SHOOT_LAZIES makes the kernel
 * itself look for CPUs that kept the dead mm.
 */
#include "harness.h"

#include <sys/resource.h>

/* What this program returns when it is exec'ed to replace a dying mm. */
#define EXEC_ARG	"--exec-target"
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

/* Touch one page in each of many page tables, so that freeing takes batches. */
static void populate(const struct job *job)
{
	size_t size = job->table_span * job->tables;
	char *area;
	long i;

	area = mmap(NULL, size, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (area == MAP_FAILED)
		lazy_fail("mmap of %zu bytes: %s", size, strerror(errno));
	/* EINVAL: a kernel without huge pages, which is as good. */
	if (madvise(area, size, MADV_NOHUGEPAGE) && errno != EINVAL)
		lazy_fail("MADV_NOHUGEPAGE: %s", strerror(errno));
	for (i = 0; i < job->tables; i++)
		area[i * job->table_span] = 1;
}

/* Unmap the whole address space: the way back from the system call faults. */
static void unmap_everything(void)
{
	const struct rlimit no_core = { 0, 0 };
	unsigned long start, end, top = 0;
	FILE *maps = fopen("/proc/self/maps", "r");
	char line[512];

	if (!maps)
		lazy_fail("/proc/self/maps: %s", strerror(errno));
	while (fgets(line, sizeof(line), maps))
		/* Not what the kernel has mapped for everyone, at the top. */
		if (sscanf(line, "%lx-%lx", &start, &end) == 2 &&
		    !strstr(line, "[vsyscall]") && end > top)
			top = end;
	fclose(maps);
	setrlimit(RLIMIT_CORE, &no_core);
	syscall(SYS_munmap, 0UL, top);
	lazy_fail("munmap of %lx bytes: %s", top, strerror(errno));
}

static void leave_lazies_and_end(const struct lazy_cpus *cpus, void *arg)
{
	char *const exec_argv[] = { "exit", EXEC_ARG, NULL };
	const struct job *job = arg;
	struct lazy_self base, s;

	if (job->tables)
		populate(job);
	if (!lazy_self(&base))
		lazy_fail("cannot read " LAZY_TLB_DIR "self");
	lazy_occupy(&crowd, cpus, cpus->nr - 1, job->how, &s);
	if (!lazy_counts_ok(job->refcount, &base, &s))
		lazy_fail("mm_count %ld before, %ld with %ld lazy CPUs",
			  base.mm_count, s.mm_count, s.lazy_cpus);
	if (job->exec) {
		execv("/proc/self/exe", exec_argv);
		lazy_fail("exec: %s", strerror(errno));
	}
	if (job->unmap)
		unmap_everything();
}

TEST_F_TIMEOUT(exit, lazies, LAZY_TIMEOUT)
{
	struct job job = { .how = variant->how, .refcount = self->t.refcount };
	int i, status;

	for (i = 0; i < 50; i++) {
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

	for (i = 0; i < 50; i++) {
		status = lazy_run(&self->t.cpus, leave_lazies_and_end, &job);
		lazy_assert_exited(_metadata, status, EXEC_CODE);
	}
}

/*
 * With nothing mapped, exit_mmap() has nothing to flush. The threads are killed
 * where they are and leave their CPUs lazy. Nothing but the final drop can make
 * those let go, on any architecture.
 */
TEST_F_TIMEOUT(exit, nothing_mapped, LAZY_TIMEOUT)
{
	struct job job = {
		.how = variant->how,
		.refcount = self->t.refcount,
		.unmap = true,
	};
	int i, status;

	for (i = 0; i < 20; i++) {
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

	/* The largest a page table can be: one page; smaller ones only repeat. */
	job.table_span = (size_t)entries * page;
	job.tables = 2 * entries + entries / 4;
	need = 2.0 * page * job.tables;
	have = (double)sysconf(_SC_AVPHYS_PAGES) * page;
	if (need > have / 2)
		SKIP(return, "needs %.0f MiB free memory", 2 * need / (1 << 20));
	ASSERT_LT(1UL << 30, job.table_span * job.tables);

	for (i = 0; i < 5; i++) {
		job.exec = i & 1;
		status = lazy_run(&self->t.cpus, leave_lazies_and_end, &job);
		lazy_assert_exited(_metadata, status, job.exec ? EXEC_CODE : 0);
	}
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], EXEC_ARG))
		return EXEC_CODE;
	return test_harness_run(argc, argv);
}
