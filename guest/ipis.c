// SPDX-License-Identifier: GPL-2.0
/*
 * The first process of the guests that `bench ipis` compares: one seeded
 * workload, the same whatever the policy, and what the kernel counted of it,
 * as `lazy-tlb-bench: what=... key=value ...` lines.
 *
 * From the kernel command line: LAZY_TLB_WORKLOAD (build, threaded or mix),
 * LAZY_TLB_SEED (1), LAZY_TLB_JOBS (of the build, 200), LAZY_TLB_BIG (big
 * processes to end, 40).
 *
 * As an ordinary program, where it is not the first process, it does the same
 * with what the kernel does not offer left out.
 */
#include "common.h"

#include <sys/utsname.h>

#define WORK		"--work"
#define COUNTER_PREFIX	"lazy_tlb_"

/* What processes of the workload tell the first one. */
struct shared {
	atomic_long exits;
	atomic_long lazy_at_exit;	/* sum over the big processes */
};

static struct shared *shared;
static struct lazy_cpus cpus;
static struct lazy_crowd crowd;
static cpu_set_t all_cpus;
static bool policy_known;

/* ---- what the kernel counted -------------------------------------------- */

#define MAX_COUNTERS	16

struct counters {
	int nr;
	char name[MAX_COUNTERS][48];
	long value[MAX_COUNTERS];
};

/* Nothing where the architecture does not count it. */
static void count(struct counters *c, const char *name, long value)
{
	if (value < 0 || c->nr == MAX_COUNTERS)
		return;
	strcpy(c->name[c->nr], name);
	c->value[c->nr++] = value;
}

static void counters_read(struct counters *c)
{
	static char buf[64 * 1024];
	char *line, *next;

	c->nr = 0;
	if (!lazy_read_file("/proc/vmstat", buf, sizeof(buf)))
		return;
	for (line = buf; line && c->nr < MAX_COUNTERS; line = next) {
		next = strchr(line, '\n');
		if (next)
			*next++ = '\0';
		if (!strncmp(line, COUNTER_PREFIX, strlen(COUNTER_PREFIX)) &&
		    sscanf(line, "%47s %ld", c->name[c->nr], &c->value[c->nr]) == 2)
			c->nr++;
	}
	count(c, "irqs_call", lazy_irqs(guest_cross_call));
	count(c, "irqs_tlb", lazy_irqs(lazy_tlb_call));
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
	char *const argv[] = { "bench", WORK, (char *)role, number, NULL };
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

static int work(const char *role, const char *number)
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
			atomic_fetch_add(&shared->exits, plan_processes(&p));
			next++;
			running++;
			continue;
		}
		if (wait(&status) < 0 || status)
			lazy_fail("a job of the build: status %#x", status);
		running--;
	}
	atomic_fetch_add(&shared->exits, 1);
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
	struct lazy_self s = { .lazy_cpus = 0 };

	touch(64);
	if (big->gone)
		lazy_roam(where, big->helpers);
	else
		lazy_crowd_start(&crowd, where, big->helpers);
	/* All are about to block: give them the time. */
	if (policy_known)
		lazy_wait(big->helpers, 50 + 10 * big->helpers, &s);
	else
		lazy_sleep_us(1000);
	atomic_fetch_add(&shared->lazy_at_exit, s.lazy_cpus);
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
		atomic_fetch_add(&shared->exits, 1);
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

/* Where one architecture has two ways to walk page tables, its name for this one. */
static void mmu_name(char *buf, size_t size)
{
	char text[8192], *pos = NULL;
	struct utsname name;

	if (lazy_read_file("/proc/cpuinfo", text, sizeof(text)))
		pos = strstr(text, "\nMMU");
	if (pos)
		pos = strchr(pos, ':');
	if (pos && sscanf(pos, ": %15s", buf) == 1) {
		for (; *buf; buf++)
			if (*buf >= 'A' && *buf <= 'Z')
				*buf += 'a' - 'A';
		return;
	}
	if (uname(&name))
		strcpy(name.machine, "unknown");
	snprintf(buf, size, "%.15s", name.machine);
}

static void report(const struct counters *before, const struct counters *after)
{
	int i;

	if (before->nr != after->nr)
		guest_problem("%d counters before, %d after", before->nr, after->nr);
	for (i = 0; i < after->nr && i < before->nr; i++)
		guest_line("lazy-tlb-bench: what=counter name=%s before=%ld after=%ld",
			   after->name[i], before->value[i], after->value[i]);
}

static void bench(void)
{
	unsigned int seed = lazy_env("LAZY_TLB_SEED", 1);
	long bigs = lazy_env("LAZY_TLB_BIG", 40);
	const char *workload = getenv("LAZY_TLB_WORKLOAD");
	long jobs = lazy_env("LAZY_TLB_JOBS", 200);
	struct counters before, after;
	char policy[32], mmu[32];
	struct utsname name;
	double start;

	if (!workload || !*workload)
		workload = "build";
	policy_known = lazy_policy(policy, sizeof(policy));
	if (!policy_known) {
		strcpy(policy, "unknown");
		if (getpid() == 1)
			guest_problem("no " LAZY_TLB_POLICY);
	}
	/* Each big process that unmaps itself would be reported. */
	if (getpid() == 1)
		lazy_write_file("/proc/sys/debug/exception-trace", "0");
	mmu_name(mmu, sizeof(mmu));
	if (uname(&name))
		strcpy(name.release, "unknown");
	guest_line("lazy-tlb-bench: what=setup policy=%s workload=%s seed=%u jobs=%ld big=%ld cpus=%d mmu=%s kernel=%s",
		   policy, workload, seed, jobs, bigs, cpus.nr, mmu, name.release);

	/* The first process stays out of the way. */
	lazy_pin(0, cpus.cpu[0]);
	counters_read(&before);
	start = lazy_now();
	if (!run_workload(workload, seed, jobs, bigs))
		guest_status = 1;
	counters_read(&after);
	report(&before, &after);
	guest_line("lazy-tlb-bench: what=result exits=%ld lazy_at_exit=%ld ms=%.0f",
		   atomic_load(&shared->exits), atomic_load(&shared->lazy_at_exit),
		   (lazy_now() - start) * 1000);
}

int main(int argc, char **argv)
{
	bool guest = getpid() == 1;

	/* The kernel hands words that it does not know to the first process. */
	if (!guest && argc == 4 && !strcmp(argv[1], WORK))
		return work(argv[2], argv[3]);

	if (guest)
		guest_start();
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		guest_problem("mmap: %s", strerror(errno));
	else if (sched_getaffinity(0, sizeof(all_cpus), &all_cpus) || lazy_cpus_get(&cpus) < 2)
		guest_problem("nothing can be measured on one CPU");
	else
		bench();
	if (guest)
		guest_end();
	return guest_status;
}
