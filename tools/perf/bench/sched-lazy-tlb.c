// SPDX-License-Identifier: GPL-2.0
/*
 * sched-lazy-tlb.c
 *
 * lazy-tlb: What it costs that a CPU goes idle with the mm of a user process
 *
 * Pairs of threads, each thread alone on its CPU, pass a token back and forth.
 * Whoever waits for it leaves its CPU to the idle task, so each trip is a switch
 * from the mm to idle and back on both CPUs, and all CPUs share the one mm. That
 * is the case of context_switch1_threads of will-it-scale with half as many
 * pairs as there are CPUs. With --process each task has its own mm: the
 * same switches, but nothing is shared.
 *
 * The price is paid elsewhere: when a process exits that CPUs are still lazy
 * on (--exit), and when its threads flush the TLBs of such CPUs (--flush).
 */
#include <subcmd/parse-options.h>
#include <api/fs/fs.h>
#include "bench.h"
#include "futex.h"
#include "../util/cpumap.h"
#include "../util/rlimit.h"
#include "../util/stat.h"

#include <err.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <linux/compiler.h>
#include <linux/kernel.h>
#include <linux/time64.h>
#include <linux/zalloc.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* As large as the cache lines of any machine. */
#define LINE_SIZE		256

/* Lets the CPUs that a process has just left reach the idle loop. */
#define SETTLE_USEC		200

/* How often the main process looks whether the workers are ready. */
#define POLL_USEC		1000

/* One end of a pair. In memory that is shared by all processes. */
struct worker {
	/* Written by the worker only. */
	unsigned long		trips;
	unsigned long		switches;
	/* Set by the peer, taken by the worker: --futex. */
	u_int32_t		token __aligned(LINE_SIZE);
	/* Constant. */
	struct worker		*peer __aligned(LINE_SIZE);
	pthread_t		thread;
	int			cpu;
	int			fds[2];
	bool			first;
} __aligned(LINE_SIZE);

/* Shared by all processes as well. */
struct control {
	unsigned int		ready;
	bool			stop;
	/* The first failure of a worker: which call, on which CPU, and errno. */
	const char		*failed_call;
	int			failed_cpu;
	int			failed_errno;
	/* For --exit. */
	u_int32_t		arrived;
	u64			exit_began;
	struct worker		workers[];
};

/* What a process leaves behind when it exits. */
enum exit_case {
	EXIT_LAZY,	/* other CPUs that are lazy on its mm */
	EXIT_ALONE,	/* none: the control */
	EXIT_CASES,
};

static const char *const exit_case_names[] = { "lazy", "alone" };

struct latencies {
	u64			*nsecs;
	size_t			nr;
	size_t			nr_allocated;
};

enum quantile {
	P50,
	P99,
	MAX,
	QUANTILES,
};

static const char *const quantile_names[] = { "p50", "p99", "max" };

/* A counter in /proc/vmstat whose name begins like this is ours. */
#define COUNTER_PREFIX		"lazy_tlb_"

#define HINT_PROCESSES \
	"raise the limit of processes (ulimit -u, pids.max), or try fewer pairs with -p"
#define HINT_CPUS \
	"see taskset -p $$, the cpuset cgroup and /sys/devices/system/cpu/online"
#define HINT_POLICY \
	"see dmesg for \"lazy_tlb: policy\"; the file needs CONFIG_LAZY_TLB_DEBUGFS"
#define HINT_COUNTERS \
	"they need CONFIG_VM_EVENT_COUNTERS and CONFIG_MMU_LAZY_TLB_SHOOTDOWN_RUST"

/* These are no sums, so there is no point in subtracting them. */
static const char *const maxima[] = {
	"lazy_tlb_max_waiting",
	"lazy_tlb_longest_wait_ms",
};

static unsigned int	nr_pairs;
static unsigned int	runtime = 1;
static unsigned int	warmup = 1;
static unsigned int	repeats;
static unsigned int	flush_pages = 16;
static const char	*cpu_list;
static bool		use_processes;
static bool		use_futexes;
static bool		exit_mode;
static bool		flush_mode;

static struct control	*control;
static unsigned int	nr_cpus;
static int		*cpus;
static long		page_size;

static const struct option options[] = {
	OPT_UINTEGER('p', "pairs", &nr_pairs, "Number of pairs (default: half as many as CPUs)"),
	OPT_UINTEGER('r', "runtime", &runtime, "Seconds to measure in each repeat (default: 1)"),
	OPT_UINTEGER('i', "repeats", &repeats,
		     "Number of repeats (default: that of perf bench -r)"),
	OPT_UINTEGER('w', "warmup", &warmup, "Seconds before each measurement (default: 1)"),
	OPT_STRING('C', "cpu", &cpu_list, "cpu", "List of CPUs to use (default: all allowed ones)"),
	OPT_BOOLEAN('F', "futex", &use_futexes, "Pass the token by futexes instead of pipes"),
	OPT_BOOLEAN(0, "process", &use_processes,
		    "Control: a process of its own for each task, so that no mm is shared"),
	OPT_BOOLEAN(0, "exit", &exit_mode,
		    "Latency of the exit of a process that CPUs are lazy on"),
	OPT_BOOLEAN(0, "flush", &flush_mode,
		    "Counter-benchmark: map, touch and unmap memory before passing the token"),
	OPT_UINTEGER('P', "pages", &flush_pages,
		     "Pages to unmap at once with --flush (default: 16)"),
	OPT_END()
};

static const char * const bench_sched_lazy_tlb_usage[] = {
	"perf bench sched lazy-tlb <options>",
	NULL
};

static u64 now_nsec(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (u64)ts.tv_sec * NSEC_PER_SEC + ts.tv_nsec;
}

/* Says what is wrong, with errno if it is not 0, and then what may help. */
static void __noreturn __printf(3, 4) fail(int error, const char *hint, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	errno = error;
	if (error)
		vwarn(format, args);
	else
		vwarnx(format, args);
	va_end(args);
	fprintf(stderr, " Hint: %s\n", hint);
	exit(EXIT_FAILURE);
}

static int pin_to(int cpu)
{
	int nr = cpu__max_cpu().cpu, ret;
	size_t size = CPU_ALLOC_SIZE(nr);
	cpu_set_t *set = CPU_ALLOC(nr);

	if (!set)
		return -1;
	CPU_ZERO_S(size, set);
	CPU_SET_S(cpu, size, set);
	ret = sched_setaffinity(0, size, set);
	CPU_FREE(set);
	return ret;
}

/* In a worker: tells the main process, which knows what to do about it. */
static void worker_failed(const char *call, int cpu)
{
	const char *none = NULL;
	int error = errno ?: EIO;

	if (__atomic_compare_exchange_n(&control->failed_call, &none, call, false,
					__ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
		control->failed_cpu = cpu;
		__atomic_store_n(&control->failed_errno, error, __ATOMIC_RELEASE);
	}
	WRITE_ONCE(control->stop, true);
}

static bool has_failed(void)
{
	return __atomic_load_n(&control->failed_errno, __ATOMIC_ACQUIRE);
}

/* In the main process. Workers that are still there die with it. */
static void check_workers(void)
{
	const char *hint = "see dmesg, and try fewer pairs with -p";

	if (!has_failed())
		return;

	if (!strcmp(control->failed_call, "sched_setaffinity"))
		hint = "the CPU went offline, or the cpuset has changed; name CPUs to use with -C";
	else if (control->failed_errno == EAGAIN)
		hint = HINT_PROCESSES;
	else if (control->failed_errno == ENOMEM)
		hint = "not enough memory; try fewer pairs with -p or fewer pages with -P";

	fail(control->failed_errno, hint, "%s, CPU %d", control->failed_call, control->failed_cpu);
}

/* fork(), with a child that does not outlive the main process. */
static pid_t start_process(void)
{
	pid_t parent = getpid(), pid = fork();

	if (pid < 0)
		fail(errno, HINT_PROCESSES, "fork");
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(EXIT_FAILURE);
	}
	return pid;
}

/* In the main process: waits for the next one to exit. */
static void reap(void)
{
	int status;

	if (wait(&status) < 0)
		err(EXIT_FAILURE, "wait");
	check_workers();
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		fail(0, "see dmesg", "a worker process was killed");
}

/* In the main process, while all of them should be there. */
static void check_processes(void)
{
	siginfo_t info = {};

	check_workers();
	if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT))
		err(EXIT_FAILURE, "waitid");
	if (info.si_pid)
		reap();
}

static int pass_token(struct worker *to)
{
	if (!use_futexes)
		return write(to->fds[1], "", 1) == 1 ? 0 : -1;

	__atomic_store_n(&to->token, 1, __ATOMIC_RELEASE);
	/* Not private: with --process the other end has another mm. */
	return futex_wake(&to->token, 1, 0) < 0 ? -1 : 0;
}

static int wait_for_token(struct worker *w)
{
	char token;

	if (!use_futexes)
		return read(w->fds[0], &token, 1) == 1 ? 0 : -1;

	while (!__atomic_exchange_n(&w->token, 0, __ATOMIC_ACQ_REL)) {
		if (futex_wait(&w->token, 0, NULL, 0) && errno != EAGAIN && errno != EINTR)
			return -1;
	}
	return 0;
}

static int map_and_unmap(void)
{
	size_t size = flush_pages * page_size, offset;
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		return -1;
	for (offset = 0; offset < size; offset += page_size)
		WRITE_ONCE(memory[offset], 1);
	return munmap(memory, size);
}

/* Returns the call that has failed, or NULL when it is time to stop. */
static const char *ping_pong(struct worker *w)
{
	if (w->first && pass_token(w->peer))
		return "passing the token";

	do {
		if (wait_for_token(w))
			return "waiting for the token";
		WRITE_ONCE(w->trips, w->trips + 1);
		if (flush_mode && map_and_unmap())
			return "mapping memory";
		if (pass_token(w->peer))
			return "passing the token";
	} while (!READ_ONCE(control->stop));

	return NULL;
}

static void *run_worker(void *arg)
{
	struct worker *w = arg;
	const char *failed_call;
	struct rusage usage;

	if (pin_to(w->cpu)) {
		worker_failed("sched_setaffinity", w->cpu);
		return NULL;
	}
	__atomic_fetch_add(&control->ready, 1, __ATOMIC_RELEASE);

	failed_call = ping_pong(w);
	if (failed_call)
		worker_failed(failed_call, w->cpu);
	/*
	 * One more token. The peer may have looked for the stop flag before it was
	 * set, and now wait for an answer to a token that we leave behind.
	 */
	pass_token(w->peer);

	getrusage(RUSAGE_THREAD, &usage);
	w->switches = usage.ru_nvcsw;
	return NULL;
}

static void __noreturn run_threads(void)
{
	unsigned int i;

	for (i = 0; i < nr_cpus; i++) {
		struct worker *w = &control->workers[i];

		errno = pthread_create(&w->thread, NULL, run_worker, w);
		if (errno) {
			worker_failed("pthread_create", w->cpu);
			_exit(EXIT_FAILURE);
		}
	}
	for (i = 0; i < nr_cpus; i++)
		pthread_join(control->workers[i].thread, NULL);
	_exit(EXIT_SUCCESS);
}

/* The CPUs that are online and allowed, or those of them that were asked for. */
static void choose_cpus(void)
{
	struct perf_cpu_map *map = cpu_list ? perf_cpu_map__new(cpu_list) :
					      perf_cpu_map__new_online_cpus();
	int nr = cpu__max_cpu().cpu;
	size_t size = CPU_ALLOC_SIZE(nr);
	cpu_set_t *allowed = CPU_ALLOC(nr);
	unsigned int nr_allowed = 0;
	struct perf_cpu cpu;
	unsigned int idx;

	if (!map)
		fail(0, "-C takes a list like 0-3,8", "invalid list of CPUs: %s", cpu_list ?: "");
	if (!allowed)
		err(EXIT_FAILURE, "memory allocation");
	if (sched_getaffinity(0, size, allowed))
		err(EXIT_FAILURE, "sched_getaffinity");

	cpus = calloc(perf_cpu_map__nr(map), sizeof(*cpus));
	if (!cpus)
		err(EXIT_FAILURE, "memory allocation");

	perf_cpu_map__for_each_cpu(cpu, idx, map) {
		if (cpu.cpu >= 0 && cpu.cpu < nr && CPU_ISSET_S(cpu.cpu, size, allowed))
			cpus[nr_allowed++] = cpu.cpu;
		else if (cpu_list)
			fail(0, HINT_CPUS, "cannot pin to CPU %d: not there, offline or forbidden",
			     cpu.cpu);
	}
	perf_cpu_map__put(map);
	CPU_FREE(allowed);

	if (nr_allowed < 2)
		fail(0, HINT_CPUS, "needs two CPUs, may use %u", nr_allowed);
	if (!nr_pairs)
		nr_pairs = nr_allowed / 2;
	if (nr_pairs > nr_allowed / 2)
		fail(0, "a task must be alone on its CPU for it to go idle; leave out -p",
		     "%u pairs need two CPUs each, may use %u CPUs", nr_pairs, nr_allowed);
	nr_cpus = 2 * nr_pairs;
}

static void check_options(void)
{
	if (!runtime)
		fail(0, "-r takes a positive number of seconds", "nothing to measure in no time");
	if (!flush_pages)
		fail(0, "-P takes a positive number", "no pages to unmap");
	if (exit_mode && (use_processes || use_futexes || flush_mode))
		fail(0, "it has a control of its own; run the others separately",
		     "--exit does not go with --process, --futex or --flush");
	if (!repeats)
		repeats = bench_repeat;
}

static void open_pipes(void)
{
	enum rlimit_action action = NO_CHANGE;
	unsigned int i;

	for (i = 0; i < nr_cpus; i++) {
		while (pipe(control->workers[i].fds)) {
			if (errno == EMFILE && rlimit__increase_nofile(&action))
				continue;
			fail(errno, "raise ulimit -n, try fewer pairs with -p, or -F without pipes",
			     "pipe %u of %u", i + 1, nr_cpus);
		}
	}
}

static void close_pipes(void)
{
	unsigned int i;

	for (i = 0; i < nr_cpus; i++) {
		close(control->workers[i].fds[0]);
		close(control->workers[i].fds[1]);
	}
}

static void allocate_control(void)
{
	size_t size = sizeof(*control) + nr_cpus * sizeof(struct worker);
	unsigned int i;

	control = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (control == MAP_FAILED)
		err(EXIT_FAILURE, "mmap");

	for (i = 0; i < nr_cpus; i++) {
		struct worker *w = &control->workers[i];

		w->cpu = cpus[i];
		w->first = i % 2 == 0;
		w->peer = &control->workers[i ^ 1];
	}
}

/* Trips per second of each worker in one repeat. */
static void measure_trips(unsigned long *rates, double *switches_per_trip)
{
	unsigned int i, nr_processes = use_processes ? nr_cpus : 1;
	unsigned long *before = calloc(nr_cpus, sizeof(*before));
	u64 began, took;

	if (!before)
		err(EXIT_FAILURE, "memory allocation");

	control->ready = 0;
	control->stop = false;
	for (i = 0; i < nr_cpus; i++) {
		control->workers[i].trips = 0;
		control->workers[i].token = 0;
	}
	/* New ones: the token of the last repeat is still in one of them. */
	if (!use_futexes)
		open_pipes();

	for (i = 0; i < nr_processes; i++) {
		if (start_process())
			continue;
		if (!use_processes)
			run_threads();
		run_worker(&control->workers[i]);
		_exit(EXIT_SUCCESS);
	}

	while (__atomic_load_n(&control->ready, __ATOMIC_ACQUIRE) < nr_cpus) {
		check_processes();
		usleep(POLL_USEC);
	}
	sleep(warmup);
	check_processes();

	began = now_nsec();
	for (i = 0; i < nr_cpus; i++)
		before[i] = READ_ONCE(control->workers[i].trips);
	sleep(runtime);
	took = now_nsec() - began;
	for (i = 0; i < nr_cpus; i++) {
		unsigned long trips = READ_ONCE(control->workers[i].trips) - before[i];

		rates[i] = (double)trips * NSEC_PER_SEC / took;
	}
	check_processes();

	WRITE_ONCE(control->stop, true);
	for (i = 0; i < nr_processes; i++)
		reap();

	for (i = 0; i < nr_cpus; i++) {
		struct worker *w = &control->workers[i];

		switches_per_trip[i] += (double)w->switches / w->trips / repeats;
	}

	if (!use_futexes)
		close_pipes();
	free(before);
}

static void __noreturn visit_and_exit(enum exit_case which)
{
	int last = cpus[nr_cpus - 1];
	unsigned int i;

	for (i = 0; which == EXIT_LAZY && i < nr_cpus - 1; i++) {
		if (pin_to(cpus[i])) {
			worker_failed("sched_setaffinity", cpus[i]);
			_exit(EXIT_FAILURE);
		}
	}
	if (pin_to(last)) {
		worker_failed("sched_setaffinity", last);
		_exit(EXIT_FAILURE);
	}

	/* The first CPU gets the mm of the main process. */
	if (which == EXIT_ALONE) {
		__atomic_store_n(&control->arrived, 1, __ATOMIC_RELEASE);
		futex_wake(&control->arrived, 1, 0);
	}
	usleep(SETTLE_USEC);

	control->exit_began = now_nsec();
	_exit(EXIT_SUCCESS);
}

/*
 * From exit() to the return of waitpid(). When a process moves to another CPU,
 * the old one goes idle, and lazy on its mm. A single thread does, so that the
 * time it takes to kill others is not part of the result.
 */
static u64 measure_exit(enum exit_case which)
{
	control->arrived = 0;
	if (!start_process())
		visit_and_exit(which);

	if (which == EXIT_ALONE) {
		/* Now and then see whether the child is still there. */
		struct timespec timeout = { .tv_sec = 1 };

		while (!__atomic_load_n(&control->arrived, __ATOMIC_ACQUIRE)) {
			if (futex_wait(&control->arrived, 0, &timeout, 0) && errno == ETIMEDOUT)
				check_processes();
		}
	}
	reap();
	return now_nsec() - control->exit_began;
}

static void add_latency(struct latencies *l, u64 nsec)
{
	if (l->nr == l->nr_allocated) {
		l->nr_allocated = l->nr_allocated ? 2 * l->nr_allocated : BUFSIZ;
		l->nsecs = realloc(l->nsecs, l->nr_allocated * sizeof(*l->nsecs));
		if (!l->nsecs)
			err(EXIT_FAILURE, "memory allocation");
	}
	l->nsecs[l->nr++] = nsec;
}

static int compare_nsecs(const void *a, const void *b)
{
	const u64 *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

static u64 quantile(const struct latencies *sorted, enum quantile which)
{
	static const unsigned int percent[] = { [P50] = 50, [P99] = 99 };

	if (which == MAX)
		return sorted->nsecs[sorted->nr - 1];
	return sorted->nsecs[sorted->nr * percent[which] / 100];
}

/* The control is taken in between, so that both see the same disturbances. */
static void measure_exits(struct latencies *latencies)
{
	u64 warm = now_nsec() + (u64)warmup * NSEC_PER_SEC;
	u64 end = warm + (u64)runtime * NSEC_PER_SEC;

	while (now_nsec() < end || !latencies[EXIT_LAZY].nr) {
		bool measuring = now_nsec() >= warm;
		enum exit_case which;

		for (which = 0; which < EXIT_CASES; which++) {
			u64 nsec = measure_exit(which);

			if (measuring)
				add_latency(&latencies[which], nsec);
		}
	}
}

/* The text of /proc/vmstat, or NULL. */
static char *read_counters(void)
{
	char *text = NULL;
	size_t size;

	procfs__read_str("vmstat", &text, &size);
	return text;
}

/* The value of a counter in the text of /proc/vmstat, 0 if there is none. */
static unsigned long long counter_value(const char *text, const char *name, size_t length)
{
	const char *line;

	for (line = text; line && *line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (!strncmp(line, name, length) && line[length] == ' ')
			return strtoull(line + length, NULL, 10);
	}
	return 0;
}

static bool is_maximum(const char *name, size_t length)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(maxima); i++) {
		if (strlen(maxima[i]) == length && !strncmp(maxima[i], name, length))
			return true;
	}
	return false;
}

static void print_counters(const char *before, const char *after)
{
	bool simple = bench_format == BENCH_FORMAT_SIMPLE;
	const char *line;
	bool found = false;

	for (line = after; line && *line; line = strchr(line, '\n')) {
		size_t length;
		bool maximum;
		unsigned long long value;

		line += *line == '\n';
		if (strncmp(line, COUNTER_PREFIX, strlen(COUNTER_PREFIX)))
			continue;
		if (!found && !simple)
			printf("\n# Counters of the whole system, all repeats with warm-up:\n");
		found = true;

		length = strcspn(line, " ");
		maximum = is_maximum(line, length);
		value = counter_value(after, line, length);
		if (!maximum)
			value -= counter_value(before, line, length);

		if (simple)
			printf("vmstat %.*s %llu\n", (int)length, line, value);
		else
			printf(" %32.*s: %llu%s\n", (int)length, line, value,
			       maximum ? " (maximum since boot)" : "");
	}
	if (!found)
		fprintf(stderr, "No %s* counters in /proc/vmstat\n Hint: %s\n",
			COUNTER_PREFIX, HINT_COUNTERS);
}

static void print_policy(void)
{
	const char *hint = HINT_POLICY;
	const char *debugfs = debugfs__mountpoint();
	const char *policy = "unknown";
	char path[PATH_MAX], *text = NULL;
	size_t size = 0;
	int error = 0;

	if (debugfs) {
		scnprintf(path, sizeof(path), "%s/lazy_tlb/policy", debugfs);
		error = filename__read_str(path, &text, &size);
	}
	if (text) {
		text[strcspn(text, "\n")] = '\0';
		policy = text;
	}

	if (bench_format == BENCH_FORMAT_SIMPLE)
		printf("policy %s\n", policy);
	else
		printf("# Policy: %s\n", policy);

	if (!text) {
		if (!debugfs)
			hint = "mount -t debugfs none /sys/kernel/debug";
		else if (error == -EACCES || error == -EPERM)
			hint = "only root can read debugfs";
		fprintf(stderr, "Cannot tell the lazy TLB policy in force\n Hint: %s\n", hint);
	}
	free(text);
}

/* One repeat has none. */
static void print_noise(struct stats *stats)
{
	if (repeats > 1)
		printf("  ( +- %6.2f%% )",
		       rel_stddev_stats(stddev_stats(stats), avg_stats(stats)));
}

static void print_setup(void)
{
	if (bench_format == BENCH_FORMAT_SIMPLE)
		return;

	if (exit_mode)
		printf("# Exits of a process that leaves CPUs lazy or not, on %u CPUs", nr_cpus);
	else
		printf("# Pairs of %s %s: %u, on %u CPUs",
		       use_processes ? "processes" : "threads of one process",
		       use_futexes ? "over futexes" : "over pipes", nr_pairs, nr_cpus);
	if (flush_mode)
		printf(", pages unmapped per token: %u", flush_pages);
	printf("\n# Repeats: %u of %u s, each after a warm-up of %u s\n\n",
	       repeats, runtime, warmup);
}

static void bench_trips(void)
{
	bool simple = bench_format == BENCH_FORMAT_SIMPLE;
	unsigned long *rates = calloc(nr_cpus, sizeof(*rates));
	double *switches_per_trip = calloc(nr_cpus, sizeof(*switches_per_trip));
	struct stats *per_cpu = calloc(nr_cpus, sizeof(*per_cpu));
	struct stats total;
	unsigned int i, repeat;

	if (!rates || !switches_per_trip || !per_cpu)
		err(EXIT_FAILURE, "memory allocation");

	init_stats(&total);
	for (i = 0; i < nr_cpus; i++)
		init_stats(&per_cpu[i]);

	for (repeat = 0; repeat < repeats; repeat++) {
		unsigned long sum = 0;

		measure_trips(rates, switches_per_trip);
		for (i = 0; i < nr_cpus; i++) {
			update_stats(&per_cpu[i], rates[i]);
			/* Both ends of a pair count its trips. */
			sum += control->workers[i].first ? rates[i] : 0;
		}
		update_stats(&total, sum);
		if (simple)
			printf("repeat %u trips_per_sec %lu\n", repeat + 1, sum);
	}

	if (!simple) {
		printf(" %14.0f trips/sec", avg_stats(&total));
		print_noise(&total);
		printf("  min %lu  max %lu\n", (unsigned long)total.min,
		       (unsigned long)total.max);
		printf(" %14.3f usecs/trip of a pair\n\n",
		       avg_stats(&total) ? USEC_PER_SEC * nr_pairs / avg_stats(&total) : 0);
		printf(" %6s %12s %s\n", "CPU", "trips/sec", "switches/trip");
	}
	for (i = 0; i < nr_cpus; i++) {
		if (simple) {
			printf("cpu %d trips_per_sec %.0f switches_per_trip %.3f\n",
			       cpus[i], avg_stats(&per_cpu[i]), switches_per_trip[i]);
			continue;
		}
		printf(" %6d %12.0f %13.3f", cpus[i], avg_stats(&per_cpu[i]),
		       switches_per_trip[i]);
		print_noise(&per_cpu[i]);
		printf("\n");
	}

	free(per_cpu);
	free(switches_per_trip);
	free(rates);
}

static void bench_exits(void)
{
	bool simple = bench_format == BENCH_FORMAT_SIMPLE;
	struct stats stats[EXIT_CASES][QUANTILES];
	size_t nr_exits[EXIT_CASES] = {};
	enum exit_case which;
	unsigned int repeat;
	enum quantile q;

	for (which = 0; which < EXIT_CASES; which++) {
		for (q = 0; q < QUANTILES; q++)
			init_stats(&stats[which][q]);
	}
	if (pin_to(cpus[0]))
		fail(errno, HINT_CPUS, "sched_setaffinity, CPU %d", cpus[0]);

	for (repeat = 0; repeat < repeats; repeat++) {
		struct latencies latencies[EXIT_CASES] = {};

		measure_exits(latencies);
		for (which = 0; which < EXIT_CASES; which++) {
			struct latencies *l = &latencies[which];

			qsort(l->nsecs, l->nr, sizeof(*l->nsecs), compare_nsecs);
			nr_exits[which] += l->nr;
			if (simple)
				printf("repeat %u %s exits %zu", repeat + 1,
				       exit_case_names[which], l->nr);
			for (q = 0; q < QUANTILES; q++) {
				update_stats(&stats[which][q], quantile(l, q));
				if (simple)
					printf(" %s_ns %llu", quantile_names[q],
					       (unsigned long long)quantile(l, q));
			}
			if (simple)
				printf("\n");
			zfree(&l->nsecs);
		}
	}
	if (simple)
		return;

	for (which = 0; which < EXIT_CASES; which++) {
		printf(" CPUs left lazy: %u, exits: %zu\n",
		       which == EXIT_LAZY ? nr_cpus - 1 : 0, nr_exits[which]);
		for (q = 0; q < QUANTILES; q++) {
			struct stats *s = &stats[which][q];

			printf(" %14.3f usecs %s", avg_stats(s) / NSEC_PER_USEC,
			       quantile_names[q]);
			print_noise(s);
			printf("\n");
		}
	}
}

int bench_sched_lazy_tlb(int argc, const char **argv)
{
	char *before, *after;

	argc = parse_options(argc, argv, options, bench_sched_lazy_tlb_usage, 0);
	if (argc) {
		usage_with_options(bench_sched_lazy_tlb_usage, options);
		exit(EXIT_FAILURE);
	}

	page_size = sysconf(_SC_PAGESIZE);
	check_options();
	choose_cpus();
	allocate_control();

	print_policy();
	print_setup();

	before = read_counters();
	if (exit_mode)
		bench_exits();
	else
		bench_trips();
	after = read_counters();
	print_counters(before, after);

	free(after);
	free(before);
	free(cpus);
	return 0;
}
