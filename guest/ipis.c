// SPDX-License-Identifier: GPL-2.0
/*
 * `bench ipis`: one seeded workload, the same whatever the policy, and what the
 * kernel counted of it, as `lazy-tlb-bench: what=... key=value ...` lines.
 *
 * LAZY_TLB_WORKLOAD (build, threaded or mix), LAZY_TLB_SEED (1), LAZY_TLB_JOBS
 * (of the build, 200), LAZY_TLB_BIG (big processes to end, 40).
 */
#include "init.h"

static atomic_long *exited;	/* processes; shared by all of them */
static struct lazy_cpus cpus;
static struct lazy_crowd crowd;
static cpu_set_t all_cpus;

/* ---- what the kernel counted -------------------------------------------- */

static const char * const counter_name[] = {
	"lazy_tlb_final_drops", "lazy_tlb_scanned", "lazy_tlb_handed", "lazy_tlb_nudged",
	"irqs_call", "irqs_tlb",
};

#define NR_COUNTERS	(sizeof(counter_name) / sizeof(*counter_name))

/* Less than 0 where the kernel or the architecture does not count it. */
static void counters_read(long value[NR_COUNTERS])
{
	size_t i;

	for (i = 0; i < NR_COUNTERS - 2; i++)
		if (!lazy_vmstat(counter_name[i], &value[i]))
			value[i] = -1;
	value[i++] = lazy_irqs(guest_cross_call);
	value[i] = lazy_irqs(lazy_tlb_call);
}

/* ---- the build ----------------------------------------------------------- */

/* What one job is made of: a function of its seed alone. */
struct plan {
	int cc_threads;
	int chunks;		/* through the pipe from cc to as */
	int pages;
	bool shell;		/* a fork without exec first, as of $(shell) */
	bool ld;
};

static void plan(struct plan *p, unsigned int seed)
{
	unsigned int rng = seed * 2654435761u + 1;

	/* The first ones of near seeds are alike. */
	lazy_random(&rng);
	lazy_random(&rng);
	p->cc_threads = lazy_random(&rng) % 4 ? 0 : 1 + lazy_random(&rng) % 3;
	p->chunks = 2 + lazy_random(&rng) % 8;
	p->pages = 8 + lazy_random(&rng) % 56;
	p->shell = lazy_random(&rng) % 2;
	p->ld = lazy_random(&rng) % 4 == 0;
}

/* The driver, cc, as; and who else comes. */
static int plan_processes(const struct plan *p)
{
	return 3 + p->shell + p->ld;
}

static void touch(int pages)
{
	size_t page = sysconf(_SC_PAGESIZE);
	char *area = mmap(NULL, pages * page, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int i;

	if (area == MAP_FAILED)
		lazy_fail("mmap of %d pages: %s", pages, strerror(errno));
	for (i = 0; i < pages; i++)
		area[i * page] = 1;
}

static void *cc_thread(void *arg)
{
	touch((long)arg);
	lazy_sleep_us(200);
	return NULL;
}

static void cc(const struct plan *p)
{
	pthread_t thread[4];
	char chunk[1024];
	int i, err;

	memset(chunk, 'x', sizeof(chunk));
	touch(p->pages);
	for (i = 0; i < p->cc_threads; i++) {
		err = pthread_create(&thread[i], NULL, cc_thread, (void *)(long)p->chunks);
		if (err)
			lazy_fail("pthread_create: %s", strerror(err));
	}
	for (i = 0; i < p->chunks; i++) {
		touch(1);
		if (!lazy_write(STDOUT_FILENO, chunk, sizeof(chunk)))
			lazy_fail("cc: write: %s", strerror(errno));
	}
	/* The last one is not waited for: exit_group() has to end it. */
	for (i = 0; i < p->cc_threads - 1; i++)
		pthread_join(thread[i], NULL);
}

static void as(const struct plan *p)
{
	long expected = p->chunks * 1024L, got = 0;
	char chunk[1024];
	ssize_t n;

	while ((n = read(STDIN_FILENO, chunk, sizeof(chunk))) > 0)
		got += n;
	if (got != expected)
		lazy_fail("as: %ld bytes instead of %ld", got, expected);
	touch(p->pages / 2);
}

static void ld(const struct plan *p)
{
	touch(p->pages);
	/* As if for a file. */
	lazy_sleep_us(500);
}

static pid_t spawn(const char *role, unsigned int seed, int in, int out)
{
	char number[16];
	char *const argv[] = { "ipis", IPIS_WORK, (char *)role, number, NULL };
	pid_t pid;

	snprintf(number, sizeof(number), "%u", seed);
	pid = fork();
	if (pid)
		return pid;
	if (in >= 0)
		dup2(in, STDIN_FILENO);
	if (out >= 0)
		dup2(out, STDOUT_FILENO);
	execv("/proc/self/exe", argv);
	lazy_fail("exec: %s", strerror(errno));
}

/* For a process of the workload whose children must end well. */
static void reap(pid_t pid, const char *who)
{
	int status;

	if (pid < 0)
		lazy_fail("fork for %s: %s", who, strerror(errno));
	if (waitpid(pid, &status, 0) != pid || status)
		lazy_fail("%s: status %#x", who, status);
}

static void driver(const struct plan *p, unsigned int seed)
{
	pid_t shell, first, second;
	int fd[2];

	if (p->shell) {
		shell = fork();
		if (!shell)
			_exit(0);
		reap(shell, "shell");
	}
	if (pipe2(fd, O_CLOEXEC))
		lazy_fail("pipe: %s", strerror(errno));
	first = spawn("cc", seed, -1, fd[1]);
	second = spawn("as", seed, fd[0], -1);
	close(fd[0]);
	close(fd[1]);
	reap(first, "cc");
	reap(second, "as");
	if (p->ld)
		reap(spawn("ld", seed, -1, -1), "ld");
}

int ipis_work(const char *role, const char *number)
{
	unsigned int seed = strtoul(number, NULL, 0);
	struct plan p;

	plan(&p, seed);
	if (!strcmp(role, "driver"))
		driver(&p, seed);
	else if (!strcmp(role, "cc"))
		cc(&p);
	else if (!strcmp(role, "as"))
		as(&p);
	else if (!strcmp(role, "ld"))
		ld(&p);
	else
		lazy_fail("no such work: %s", role);
	/* exit_group(), threads or not. */
	_exit(0);
}

/* A process with as many jobs running as there are CPUs. */
static void make(unsigned int seed, long jobs)
{
	/* Far apart, so that another seed is another build. */
	unsigned int first = seed * 1000003;
	long next, running = 0;
	struct plan p;
	int status;

	sched_setaffinity(0, sizeof(all_cpus), &all_cpus);
	for (next = 0; next < jobs || running; ) {
		if (next < jobs && running < cpus.nr) {
			if (spawn("driver", first + next, -1, -1) < 0)
				lazy_fail("fork for a job: %s", strerror(errno));
			plan(&p, first + next);
			atomic_fetch_add(exited, plan_processes(&p));
			next++;
			running++;
			continue;
		}
		if (wait(&status) < 0 || status)
			lazy_fail("a job of the build: status %#x", status);
		running--;
	}
	atomic_fetch_add(exited, 1);
}

/* ---- big processes -------------------------------------------------------- */

struct big {
	int helpers;
	bool gone;	/* it has been on the other CPUs; no thread is left there */
	bool bare;	/* end with nothing mapped, so that no flush is needed */
};

static void big_process(const struct lazy_cpus *where, void *arg)
{
	const struct big *big = arg;
	struct lazy_self s;

	touch(64);
	if (big->gone)
		lazy_roam(where, big->helpers);
	else
		lazy_crowd_start(&crowd, where, big->helpers);
	/* All are about to block: give them the time. */
	lazy_wait(big->helpers, 50 + 10 * big->helpers, &s);
	if (big->bare)
		lazy_unmap_everything();
}

/* @busy: other processes are about, so any number of CPUs will do. */
static bool big_processes(unsigned int seed, long nr, bool busy)
{
	unsigned int rng = seed;
	struct big big;
	int status;
	long i;

	for (i = 0; i < nr; i++) {
		big.bare = i & 1;
		big.gone = i & 2;
		big.helpers = cpus.nr - 1;
		if (busy && big.helpers > 1)
			big.helpers = 1 + lazy_random(&rng) % big.helpers;
		status = lazy_run(&cpus, big_process, &big);
		if (big.bare ? !WIFSIGNALED(status) || WTERMSIG(status) != SIGSEGV : status) {
			guest_problem("big process %ld: status %#x", i, status);
			return false;
		}
		atomic_fetch_add(exited, 1);
	}
	return true;
}

/* ---- the workloads --------------------------------------------------------- */

static bool run_workload(const char *name, unsigned int seed, long jobs, long bigs)
{
	bool build = !strcmp(name, "build"), mix = !strcmp(name, "mix");
	bool ok = true;
	pid_t pid = 0;
	int status;

	if (!build && !mix && strcmp(name, "threaded")) {
		guest_problem("no workload is called %s", name);
		return false;
	}
	if (build || mix) {
		pid = fork();
		if (!pid) {
			make(seed, jobs);
			_exit(0);
		}
		if (pid < 0) {
			guest_problem("fork: %s", strerror(errno));
			return false;
		}
	}
	if (!build)
		ok = big_processes(seed, bigs, mix);
	if (pid && (waitpid(pid, &status, 0) != pid || status)) {
		guest_problem("the build: status %#x", status);
		ok = false;
	}
	return ok;
}

void ipis(void)
{
	unsigned int seed = lazy_env("LAZY_TLB_SEED", 1);
	const char *workload = getenv("LAZY_TLB_WORKLOAD") ?: "build";
	long before[NR_COUNTERS], after[NR_COUNTERS];
	char policy[32];
	size_t i;

	guest_cpus(&cpus);
	exited = guest_shared(sizeof(*exited));
	if (sched_getaffinity(0, sizeof(all_cpus), &all_cpus) ||
	    !lazy_policy(policy, sizeof(policy))) {
		guest_problem("no " LAZY_TLB_POLICY ": %s", strerror(errno));
		return;
	}
	/* Each big process that unmaps itself would be reported. */
	lazy_write_file("/proc/sys/debug/exception-trace", "0");
	guest_line("lazy-tlb-bench: what=setup policy=%s workload=%s", policy, workload);

	/* The first process stays out of the way. */
	lazy_pin(0, cpus.cpu[0]);
	counters_read(before);
	if (!run_workload(workload, seed, lazy_env("LAZY_TLB_JOBS", 200),
			  lazy_env("LAZY_TLB_BIG", 40)))
		guest_status = 1;
	counters_read(after);
	for (i = 0; i < NR_COUNTERS; i++)
		if (before[i] >= 0 && after[i] >= 0)
			guest_line("lazy-tlb-bench: what=counter name=%s before=%ld after=%ld",
				   counter_name[i], before[i], after[i]);
	guest_line("lazy-tlb-bench: what=result exits=%ld", atomic_load(exited));
}
