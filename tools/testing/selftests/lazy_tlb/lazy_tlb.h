/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Helpers that put a process into the states the lazy TLB code cares about,
 * and that read back what the kernel says about it.
 *
 * Does not depend on the kselftest harness: guest programs use it as well.
 */
#ifndef SELFTESTS_LAZY_TLB_H
#define SELFTESTS_LAZY_TLB_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Newer than the oldest libc in use. */
#ifndef SYS_pidfd_open
#define SYS_pidfd_open		434
#endif
#ifndef SYS_process_mrelease
#define SYS_process_mrelease	448
#endif

/* What is in force, and may be written. */
#define LAZY_TLB_POLICY	"/sys/module/kernel/parameters/lazy_tlb"

/* About the mm of the reader. */
#define LAZY_TLB_SELF	"/sys/kernel/debug/lazy_tlb/self"

#define LAZY_MAX_CPUS	CPU_SETSIZE

/* ---- output ---------------------------------------------------------- */

/*
 * A line in one write: others, the kernel among them, may be writing to the
 * same place.
 */
#define lazy_line(fd, fmt, ...) do {					\
	char *line_;							\
	int len_ = asprintf(&line_, fmt "\n", ##__VA_ARGS__);		\
									\
	if (len_ > 0) {							\
		lazy_write(fd, line_, len_);				\
		free(line_);						\
	}								\
} while (0)

static inline bool lazy_write(int fd, const char *buf, size_t len)
{
	ssize_t n;

	while (len) {
		n = write(fd, buf, len);
		if (n < 0 && errno != EINTR)
			return false;
		if (n > 0) {
			buf += n;
			len -= n;
		}
	}
	return true;
}

/* For a child of a test: say why, and end it. */
#define lazy_fail(fmt, ...) do {					\
	lazy_line(STDERR_FILENO, "# " fmt, ##__VA_ARGS__);		\
	_exit(1);							\
} while (0)

/* ---- files ---------------------------------------------------------- */

static inline bool lazy_read_file(const char *path, char *buf, size_t size)
{
	size_t len = 0;
	ssize_t n = 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return false;
	while (len < size - 1) {
		n = read(fd, buf + len, size - 1 - len);
		if (n <= 0)
			break;
		len += n;
	}
	close(fd);
	buf[len] = '\0';
	return n >= 0 && len;
}

static inline bool lazy_write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool ok;

	if (fd < 0)
		return false;
	ok = lazy_write(fd, text, strlen(text));
	close(fd);
	return ok;
}

/* The taint mask, or -1. A warning during a test shows as a new bit. */
static inline long lazy_taint(void)
{
	char buf[32];

	if (!lazy_read_file("/proc/sys/kernel/tainted", buf, sizeof(buf)))
		return -1;
	return strtol(buf, NULL, 10);
}

/* A number from the environment, so that a failure can be repeated. */
static inline unsigned long lazy_env(const char *name, unsigned long fallback)
{
	const char *value = getenv(name);

	return value && *value ? strtoul(value, NULL, 0) : fallback;
}

/* xorshift: the same seed gives the same test on every libc. */
static inline unsigned int lazy_random(unsigned int *state)
{
	unsigned int x = *state ? *state : 0x9e3779b9;

	x ^= x << 13;
	x ^= x >> 17;
	x ^= x << 5;
	*state = x;
	return x;
}

static inline double lazy_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static inline void lazy_sleep_us(long us)
{
	struct timespec ts = { us / 1000000, us % 1000000 * 1000 };

	nanosleep(&ts, NULL);
}

/* ---- what the kernel says ------------------------------------------- */

static inline bool lazy_policy(char *buf, size_t size)
{
	if (!lazy_read_file(LAZY_TLB_POLICY, buf, size))
		return false;
	buf[strcspn(buf, " \t\n")] = '\0';
	return *buf;
}

static const char * const lazy_policies[] = { "shootdown", "handover", "refcount" };

#define LAZY_NR_POLICIES	3

static inline bool lazy_set_policy(const char *policy)
{
	return lazy_write_file(LAZY_TLB_POLICY, policy);
}

/* About the mm of the calling process. */
struct lazy_self {
	long mm_users;
	long mm_count;
	long lazy_cpus;		/* without those that count in mm_count */
	long lazies;		/* with those */
};

/* What mm_count is while no CPU is lazy on the mm. */
static long lazy_base = 1;

static inline bool lazy_field(const char *text, const char *key, long *value)
{
	size_t len = strlen(key);
	char *end;

	while (text) {
		if (!strncmp(text, key, len) && text[len] == ' ') {
			*value = strtol(text + len, &end, 10);
			return end != text + len + 1;
		}
		text = strchr(text, '\n');
		if (text)
			text++;
	}
	return false;
}

static inline bool lazy_self(struct lazy_self *s)
{
	char buf[256];

	if (!lazy_read_file(LAZY_TLB_SELF, buf, sizeof(buf)) ||
	    !lazy_field(buf, "mm_users", &s->mm_users) ||
	    !lazy_field(buf, "mm_count", &s->mm_count) ||
	    !lazy_field(buf, "lazy_cpus", &s->lazy_cpus))
		return false;
	s->lazies = s->lazy_cpus + s->mm_count - lazy_base;
	return true;
}

static inline void lazy_self_or_fail(struct lazy_self *s)
{
	if (!lazy_self(s))
		lazy_fail("cannot read " LAZY_TLB_SELF);
}

/* Wait until exactly @want CPUs are lazy on the caller's mm. */
static inline bool lazy_wait(long want, long timeout_ms, struct lazy_self *s)
{
	double end = lazy_now() + timeout_ms / 1000.0;

	do {
		if (!lazy_self(s))
			return false;
		if (s->lazies == want)
			return true;
		lazy_sleep_us(200);
	} while (lazy_now() < end);
	return false;
}

/* One of the counters that /proc/vmstat has, lazy_tlb_... among them. */
static inline bool lazy_vmstat(const char *key, long *value)
{
	char buf[32768];

	return lazy_read_file("/proc/vmstat", buf, sizeof(buf)) &&
	       lazy_field(buf, key, value);
}

/* What carries a TLB flush in /proc/interrupts. Only x86 counts that. */
static const char * const lazy_tlb_call[] = { "TLB shootdowns", NULL };

/* Sum over all CPUs of the lines of /proc/interrupts with one of @texts, or -1. */
static inline long lazy_irqs(const char * const *texts)
{
	char *line = NULL, *pos, *end;
	FILE *f = fopen("/proc/interrupts", "r");
	size_t size = 0;
	long sum = -1, n;
	int i;

	if (!f)
		return -1;
	while (getline(&line, &size, f) > 0) {
		for (i = 0; texts[i] && !strstr(line, texts[i]); i++)
			;
		pos = strchr(line, ':');
		if (!texts[i] || !pos)
			continue;
		if (sum < 0)
			sum = 0;
		for (pos++; n = strtol(pos, &end, 10), end != pos; pos = end)
			sum += n;
	}
	free(line);
	fclose(f);
	return sum;
}

/* What the final drops of all mms have done so far. */
struct lazy_drops {
	long final_drops;
	long handed;
	long nudged;
};

static inline bool lazy_drops(struct lazy_drops *d)
{
	return lazy_vmstat("lazy_tlb_final_drops", &d->final_drops) &&
	       lazy_vmstat("lazy_tlb_handed", &d->handed) &&
	       lazy_vmstat("lazy_tlb_nudged", &d->nudged);
}

/* Free objects that a CPU keeps for itself count as used: have them given up. */
static inline bool lazy_slab_shrink(const char *name)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "/sys/kernel/slab/%s/shrink", name);
	return lazy_write_file(path, "1");
}

/* Objects of a slab cache in use, -1 where it cannot be known. */
static inline long lazy_slab_objects(const char *name)
{
	static char buf[64 * 1024];
	long objects;

	if (!lazy_read_file("/proc/slabinfo", buf, sizeof(buf)) ||
	    !lazy_field(buf, name, &objects))
		return -1;
	return objects;
}

/* ---- what is left over of mms ------------------------------------------ */

#define LAZY_NR_SLABS	2

/* What dies with an mm. The second is a cache of its own on some machines only. */
static const char * const lazy_slab_name[LAZY_NR_SLABS] = { "mm_struct", "pgd_cache" };

struct lazy_leftovers {
	long objects[LAZY_NR_SLABS];
	long tables;	/* pages of page tables */
	bool exact;	/* free objects are not counted */
	long threads;	/* those of others come and go */
};

/* -1 where the kernel does not say. */
static inline void lazy_leftovers(struct lazy_leftovers *l)
{
	char load[128];
	int i;

	l->exact = true;
	for (i = 0; i < LAZY_NR_SLABS; i++) {
		l->exact &= lazy_slab_shrink(lazy_slab_name[i]) || i;
		l->objects[i] = lazy_slab_objects(lazy_slab_name[i]);
	}
	/* What CPUs have not added up yet is missing otherwise. */
	lazy_write_file("/proc/sys/vm/stat_refresh", "1");
	if (!lazy_vmstat("nr_page_table_pages", &l->tables))
		l->tables = -1;
	if (!lazy_read_file("/proc/loadavg", load, sizeof(load)) ||
	    sscanf(load, "%*f %*f %*f %*d/%ld", &l->threads) != 1)
		l->threads = 0;
}

/* ---- CPUs ------------------------------------------------------------ */

static inline bool lazy_pin(pid_t tid, int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	return !sched_setaffinity(tid, sizeof(set), &set);
}

/* CPUs the caller may use, lowest first: cpu[0] is home, where it stays. */
struct lazy_cpus {
	int nr;
	int cpu[LAZY_MAX_CPUS];
};

static inline int lazy_cpus_get(struct lazy_cpus *cpus)
{
	cpu_set_t set;
	int i;

	cpus->nr = 0;
	if (sched_getaffinity(0, sizeof(set), &set))
		return 0;
	for (i = 0; i < LAZY_MAX_CPUS; i++)
		if (CPU_ISSET(i, &set))
			cpus->cpu[cpus->nr++] = i;
	return cpus->nr;
}

static inline bool lazy_set_online(int cpu, bool online)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%d/online", cpu);
	return lazy_write_file(path, online ? "1" : "0");
}

/* Those of @cpus that can be taken offline, home excepted. */
static inline int lazy_cpus_can_offline(const struct lazy_cpus *cpus,
					struct lazy_cpus *can)
{
	char path[64];
	int i;

	can->nr = 0;
	for (i = 1; i < cpus->nr; i++) {
		snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%d/online",
			 cpus->cpu[i]);
		if (!access(path, W_OK))
			can->cpu[can->nr++] = cpus->cpu[i];
	}
	return can->nr;
}

/* If the CPU is offline, the caller stays where it is, which is as good. */
static inline void lazy_go_somewhere(const struct lazy_cpus *cpus, unsigned int *seed)
{
	lazy_pin(0, cpus->cpu[lazy_random(seed) % cpus->nr]);
}

/* ---- processes ------------------------------------------------------- */

#define LAZY_EXEC_ARG	"--exec-target"

/* Replace the calling process by this program, which ends at once with @code. */
static inline void lazy_exec_self(int code)
{
	char text[16];
	char *const argv[] = { "lazy_tlb", LAZY_EXEC_ARG, text, NULL };

	snprintf(text, sizeof(text), "%d", code);
	execv("/proc/self/exe", argv);
	lazy_fail("exec: %s", strerror(errno));
}

/* For main(): does not return if lazy_exec_self() has started this program. */
static inline void lazy_exec_target(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], LAZY_EXEC_ARG))
		exit(strtol(argv[2], NULL, 10));
}

/*
 * Run @fn in a process of its own, born on cpus->cpu[0] so that no other CPU
 * has ever seen its mm. Returns the wait status, or -1.
 */
static inline int lazy_run(const struct lazy_cpus *cpus,
			   void (*fn)(const struct lazy_cpus *cpus, void *arg),
			   void *arg)
{
	struct lazy_self s;
	int status;
	pid_t pid;

	if (!lazy_pin(0, cpus->cpu[0]))
		return -1;
	fflush(NULL);
	pid = fork();
	if (!pid) {
		/* Born on its only CPU: nobody is lazy on this mm yet. */
		if (lazy_self(&s))
			lazy_base = s.mm_count;
		fn(cpus, arg);
		_exit(0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return -1;
	return status;
}

/* Shared by processes, in memory that is mapped so. */
struct lazy_tally {
	atomic_long exits;
	atomic_bool stop;
};

/* What one process of a churn does until it is told to stop. CPUs may come and go. */
static inline void lazy_fork_roam_exit(const struct lazy_cpus *cpus, unsigned int seed,
				       struct lazy_tally *tally)
{
	int i, status;
	pid_t pid;

	/* A test that was given up must not go on churning. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (!atomic_load(&tally->stop)) {
		lazy_go_somewhere(cpus, &seed);
		pid = fork();
		if (!pid) {
			for (i = 0; i < 3; i++)
				lazy_go_somewhere(cpus, &seed);
			_exit(0);
		}
		if (pid < 0 || waitpid(pid, &status, 0) != pid)
			lazy_fail("fork or waitpid: %s", strerror(errno));
		if (status)
			lazy_fail("a child ended with %#x", status);
		atomic_fetch_add(&tally->exits, 1);
	}
	_exit(0);
}

/* Unmap the whole address space: the way back from the system call faults. */
static inline void lazy_unmap_everything(void)
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
		    !strstr(line, "[vsyscall]") && !strstr(line, "[vectors]") &&
		    end > top)
			top = end;
	fclose(maps);
	setrlimit(RLIMIT_CORE, &no_core);
	syscall(SYS_munmap, 0UL, top);
	lazy_fail("munmap of %lx bytes: %s", top, strerror(errno));
}

/* ---- leaving CPUs lazy ------------------------------------------------ */

enum lazy_how {
	LAZY_BLOCK,	/* a thread is blocked on each CPU, the last user task there */
	LAZY_ROAM,	/* the main thread was there, and migrated away */
	LAZY_DIE,	/* a thread exited there */
};

struct lazy_crowd;

struct lazy_helper {
	struct lazy_crowd *crowd;
	pthread_t thread;
	pid_t tid;
	int cpu;
};

/* Threads on other CPUs than home. Start from zeroed memory. */
struct lazy_crowd {
	int nr;
	bool once;		/* helpers exit instead of blocking */
	bool anywhere;		/* CPUs may be offline: helpers stay elsewhere */
	atomic_int arrived;
	atomic_uint gate;	/* futex: helpers sleep until it moves */
	struct lazy_helper helper[LAZY_MAX_CPUS];
};

static inline long lazy_futex(atomic_uint *word, int op, unsigned int val)
{
	return syscall(SYS_futex, word, op | FUTEX_PRIVATE_FLAG, val, NULL, NULL, 0);
}

static inline void *lazy_helper_fn(void *arg)
{
	struct lazy_helper *h = arg;
	struct lazy_crowd *crowd = h->crowd;
	unsigned int seen;

	h->tid = syscall(SYS_gettid);
	if (!lazy_pin(0, h->cpu) && !crowd->anywhere)
		lazy_fail("cannot run on CPU %d: %s", h->cpu, strerror(errno));
	do {
		seen = atomic_load(&crowd->gate);
		atomic_fetch_add(&crowd->arrived, 1);
		while (!crowd->once && atomic_load(&crowd->gate) == seen)
			lazy_futex(&crowd->gate, FUTEX_WAIT, seen);
	} while (!crowd->once);
	return NULL;
}

static inline void lazy_crowd_arrive(struct lazy_crowd *crowd)
{
	while (atomic_load(&crowd->arrived) < crowd->nr)
		lazy_sleep_us(100);
}

/* One helper on each of the first @nr CPUs after home; all but blocked. */
static inline void lazy_crowd_start(struct lazy_crowd *crowd,
				    const struct lazy_cpus *cpus, int nr)
{
	struct lazy_helper *h;
	int i, err;

	crowd->nr = nr;
	atomic_store(&crowd->arrived, 0);
	for (i = 0; i < nr; i++) {
		h = &crowd->helper[i];
		h->crowd = crowd;
		h->cpu = cpus->cpu[i + 1];
		err = pthread_create(&h->thread, NULL, lazy_helper_fn, h);
		if (err)
			lazy_fail("pthread_create: %s", strerror(err));
	}
	lazy_crowd_arrive(crowd);
}

/* Let every helper run on its CPU again, and block again. */
static inline void lazy_crowd_kick(struct lazy_crowd *crowd)
{
	atomic_store(&crowd->arrived, 0);
	atomic_fetch_add(&crowd->gate, 1);
	lazy_futex(&crowd->gate, FUTEX_WAKE, INT_MAX);
	lazy_crowd_arrive(crowd);
}

/* Run on each of the first @nr CPUs after home, and on home in the end. */
static inline void lazy_roam(const struct lazy_cpus *cpus, int nr)
{
	int i;

	for (i = nr; i >= 0; i--)
		if (!lazy_pin(0, cpus->cpu[i]))
			lazy_fail("cannot run on CPU %d: %s", cpus->cpu[i], strerror(errno));
}

/*
 * Make the first @nr CPUs after home lazy on the caller's mm, and see that
 * they are. Other user tasks may take a CPU in between, hence the attempts.
 * Ends the process when it cannot be had: no test may go on without.
 */
static inline void lazy_occupy(struct lazy_crowd *crowd,
			       const struct lazy_cpus *cpus, int nr,
			       enum lazy_how how, struct lazy_self *s)
{
	int attempt, i;

	s->lazies = -1;
	if (how == LAZY_BLOCK && !crowd->nr)
		lazy_crowd_start(crowd, cpus, nr);
	for (attempt = 0; attempt < 50; attempt++) {
		switch (how) {
		case LAZY_BLOCK:
			if (attempt)
				lazy_crowd_kick(crowd);
			break;
		case LAZY_ROAM:
			lazy_roam(cpus, nr);
			break;
		case LAZY_DIE:
			crowd->once = true;
			lazy_crowd_start(crowd, cpus, nr);
			for (i = 0; i < nr; i++)
				pthread_join(crowd->helper[i].thread, NULL);
			break;
		}
		if (lazy_wait(nr, 100, s))
			return;
	}
	lazy_fail("%d CPUs should be lazy on this mm, the kernel says %ld",
		  nr, s->lazies);
}

/*
 * All lazy CPUs count in mm_count in refcount mode, none in every other. The
 * kernel reads mm_count first and counts other lazy CPUs then: one may begin or
 * end being lazy in between. What stays like that is wrong.
 */
static inline void lazy_check_counts(bool refcount, const char *when)
{
	double end = lazy_now() + 2;
	struct lazy_self s;

	do {
		lazy_self_or_fail(&s);
		if (refcount ? !s.lazy_cpus && s.lazies >= 0 : s.mm_count == lazy_base)
			return;
		lazy_sleep_us(1000);
	} while (lazy_now() < end);
	lazy_fail("%s: mm_count %ld at first, %ld with %ld other lazy CPUs", when,
		  lazy_base, s.mm_count, s.lazy_cpus);
}

#endif /* SELFTESTS_LAZY_TLB_H */
