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
 *
 * --compare has the kernel change its policy between measurements, and sets each
 * beside that of the first policy in the same round: whatever else happens to
 * the machine in the course of minutes happens to both.
 */
#include <subcmd/parse-options.h>
#include <api/fs/fs.h>
#include "bench.h"
#include "futex.h"
#include "../util/cpumap.h"
#include "../util/rlimit.h"

#include <err.h>
#include <errno.h>
#include <fcntl.h>
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
	/* Of the main process: means of all repeats, and trips before this one. */
	double			rate;
	double			switches_per_trip;
	unsigned long		before;
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
	double			*usecs;
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
	"it needs a kernel with CONFIG_MMU_LAZY_TLB_SHOOTDOWN_RUST"
#define HINT_COUNTERS \
	"they need CONFIG_VM_EVENT_COUNTERS and CONFIG_MMU_LAZY_TLB_SHOOTDOWN_RUST"

/* In sysfs. Whoever may write it changes the policy. */
#define POLICY_FILE		"module/kernel/parameters/lazy_tlb"

/* Something that is measured in each repeat, under each policy. */
struct row {
	const char		*mode;
	const char		*what;
	unsigned int		cpus;
	/* The repeats of one policy, then those of the next. */
	double			*usecs;
};

/* Of the repeats. */
struct spread {
	double			median;
	double			min;
	double			max;
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
static const char	*compare;

static struct control	*control;
static unsigned int	nr_cpus;
static int		*cpus;
/* Where this process may run, and what comes after it in "perf bench all". */
static cpu_set_t	*allowed;
static size_t		allowed_size;
static long		page_size;

/* Those to compare: the first is what the others are compared with. */
static char		**policies;
/* At least one, which without --compare is whatever is in force. */
static unsigned int	nr_policies = 1;
static int		policy_fd = -1;
static char		*former_policy;
static pid_t		main_pid;
/* Whether to compare with a single pair too, which has nobody to contend with. */
static bool		one_pair_too;

static struct row	*rows;
static unsigned int	nr_rows;

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
	OPT_STRING(0, "compare", &compare, "policy,policy[,policy]",
		   "Change the lazy TLB policy in turn, and compare: this mode, or all"),
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
	unsigned int nr_allowed = 0;
	struct perf_cpu cpu;
	unsigned int idx;

	allowed_size = CPU_ALLOC_SIZE(nr);
	allowed = CPU_ALLOC(nr);
	if (!map)
		fail(0, "-C takes a list like 0-3,8", "invalid list of CPUs: %s", cpu_list ?: "");
	if (!allowed)
		err(EXIT_FAILURE, "memory allocation");
	if (sched_getaffinity(0, allowed_size, allowed))
		err(EXIT_FAILURE, "sched_getaffinity");

	cpus = calloc(perf_cpu_map__nr(map), sizeof(*cpus));
	if (!cpus)
		err(EXIT_FAILURE, "memory allocation");

	perf_cpu_map__for_each_cpu(cpu, idx, map) {
		if (cpu.cpu >= 0 && cpu.cpu < nr && CPU_ISSET_S(cpu.cpu, allowed_size, allowed))
			cpus[nr_allowed++] = cpu.cpu;
		else if (cpu_list)
			fail(0, HINT_CPUS, "cannot pin to CPU %d: not there, offline or forbidden",
			     cpu.cpu);
	}
	perf_cpu_map__put(map);

	if (nr_allowed < 2)
		fail(0, HINT_CPUS, "needs two CPUs, may use %u", nr_allowed);
	one_pair_too = compare && !nr_pairs;
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

/* Trips per second of all pairs in one repeat. */
static double measure_trips(void)
{
	unsigned int i, nr_processes = use_processes ? nr_cpus : 1;
	unsigned long sum = 0;
	struct worker *w;
	u64 began, took;

	control->ready = 0;
	control->stop = false;
	for (w = control->workers; w < control->workers + nr_cpus; w++) {
		w->trips = 0;
		w->token = 0;
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
	for (w = control->workers; w < control->workers + nr_cpus; w++)
		w->before = READ_ONCE(w->trips);
	sleep(runtime);
	took = now_nsec() - began;
	for (w = control->workers; w < control->workers + nr_cpus; w++) {
		unsigned long trips = READ_ONCE(w->trips) - w->before;

		w->rate += (double)trips * NSEC_PER_SEC / took / repeats;
		/* Both ends of a pair count its trips. */
		sum += w->first ? trips : 0;
	}
	check_processes();

	WRITE_ONCE(control->stop, true);
	for (i = 0; i < nr_processes; i++)
		reap();

	for (w = control->workers; w < control->workers + nr_cpus; w++)
		w->switches_per_trip += (double)w->switches / w->trips / repeats;
	if (!use_futexes)
		close_pipes();
	return (double)sum * NSEC_PER_SEC / took;
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
 * usecs from exit() to the return of waitpid(). When a process moves to another CPU,
 * the old one goes idle, and lazy on its mm. A single thread does, so that the
 * time it takes to kill others is not part of the result.
 */
static double measure_exit(enum exit_case which)
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
	return (double)(now_nsec() - control->exit_began) / NSEC_PER_USEC;
}

static void add_latency(struct latencies *l, double usecs)
{
	if (l->nr == l->nr_allocated) {
		l->nr_allocated = l->nr_allocated ? 2 * l->nr_allocated : BUFSIZ;
		l->usecs = realloc(l->usecs, l->nr_allocated * sizeof(*l->usecs));
		if (!l->usecs)
			err(EXIT_FAILURE, "memory allocation");
	}
	l->usecs[l->nr++] = usecs;
}

static int compare_doubles(const void *a, const void *b)
{
	const double *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

static double quantile(const struct latencies *sorted, enum quantile which)
{
	static const unsigned int percent[] = { [P50] = 50, [P99] = 99 };

	if (which == MAX)
		return sorted->usecs[sorted->nr - 1];
	return sorted->usecs[sorted->nr * percent[which] / 100];
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
			double usecs = measure_exit(which);

			if (measuring)
				add_latency(&latencies[which], usecs);
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

/* Two texts of /proc/vmstat, which have the same lines. */
static void print_counters(const char *before, const char *after)
{
	bool simple = bench_format == BENCH_FORMAT_SIMPLE, found = false;
	unsigned long long was, is;
	char name[64];

	while (before && after) {
		before = strstr(before, "\n" COUNTER_PREFIX);
		after = strstr(after, "\n" COUNTER_PREFIX);
		if (!before || sscanf(++before, "%*s %llu", &was) != 1 ||
		    !after || sscanf(++after, "%63s %llu", name, &is) != 2)
			break;
		if (!found && !simple)
			printf("\n# Counters of the whole system, all repeats with warm-up:\n");
		found = true;
		printf(simple ? "vmstat %s %llu\n" : " %32s: %llu\n", name, is - was);
	}
	if (!found)
		fprintf(stderr, "No %s* counters in /proc/vmstat\n Hint: %s\n",
			COUNTER_PREFIX, HINT_COUNTERS);
}

/* A line, which the kernel takes as a whole or not at all. Signal handlers may call it. */
static bool write_policy(const char *line)
{
	return pwrite(policy_fd, line, strlen(line), 0) == (ssize_t)strlen(line);
}

static void change_policy(const char *name)
{
	char line[64];

	scnprintf(line, sizeof(line), "%s\n", name);
	if (!write_policy(line))
		fail(errno, "the kernel knows refcount, shootdown and handover",
		     "cannot change the lazy TLB policy to '%s'", name);
}

/* Not for children. */
static void restore_policy(void)
{
	static const char failed[] = "The lazy TLB policy of before could not be restored\n";

	if (getpid() == main_pid && !write_policy(former_policy) &&
	    write(STDERR_FILENO, failed, strlen(failed)) < 0)
		return;
}

static void restore_policy_and_die(int signal_nr)
{
	restore_policy();
	signal(signal_nr, SIG_DFL);
	raise(signal_nr);
}

/* A line with the policy in force, or NULL. */
static char *read_policy(void)
{
	char *line = NULL;
	size_t size;

	sysfs__read_str(POLICY_FILE, &line, &size);
	return line;
}

/* Tries each of them before anything is measured. */
static void open_policies(void)
{
	static const int deadly[] = { SIGHUP, SIGINT, SIGPIPE, SIGTERM };
	char *list = strdup(compare), *name;
	const char *sysfs = sysfs__mountpoint();
	char path[PATH_MAX];
	unsigned int i;

	if (!list)
		err(EXIT_FAILURE, "memory allocation");
	for (nr_policies = 0; (name = strsep(&list, ",")); nr_policies++) {
		policies = realloc(policies, (nr_policies + 1) * sizeof(*policies));
		if (!policies)
			err(EXIT_FAILURE, "memory allocation");
		policies[nr_policies] = name;
	}
	if (nr_policies < 2)
		fail(0, "name another one after a comma", "one policy to compare with none: %s",
		     compare);

	scnprintf(path, sizeof(path), "%s/%s", sysfs ?: "/sys", POLICY_FILE);
	policy_fd = open(path, O_RDWR | O_CLOEXEC);
	if (policy_fd < 0)
		fail(errno, errno == ENOENT ? HINT_POLICY : "only root can change the policy",
		     "%s", path);
	former_policy = read_policy();
	if (!former_policy)
		fail(0, HINT_POLICY, "cannot read %s", path);

	main_pid = getpid();
	for (i = 0; i < ARRAY_SIZE(deadly); i++) {
		if (signal(deadly[i], restore_policy_and_die) == SIG_IGN)
			signal(deadly[i], SIG_IGN);
	}
	atexit(restore_policy);
	for (i = 0; i < nr_policies; i++)
		change_policy(policies[i]);
}

static void print_setup(void)
{
	char *policy = compare ? strdup(compare) : read_policy();

	if (policy)
		policy[strcspn(policy, "\n")] = '\0';
	else
		fprintf(stderr, "Cannot tell the lazy TLB policy in force\n Hint: %s\n",
			HINT_POLICY);
	if (bench_format == BENCH_FORMAT_SIMPLE)
		printf("policy %s\n", policy ?: "unknown");
	else
		printf("# Policy: %s\n# Repeats: %u of %u s, each after a warm-up of %u s\n\n",
		       policy ?: "unknown", repeats, runtime, warmup);
	free(policy);
}

static void add_sample(const char *mode, const char *what, unsigned int policy,
		       unsigned int repeat, double usecs)
{
	struct row *row;

	for (row = rows; row < rows + nr_rows; row++) {
		if (row->mode == mode && row->what == what && row->cpus == nr_cpus)
			break;
	}
	if (row == rows + nr_rows) {
		rows = realloc(rows, ++nr_rows * sizeof(*rows));
		if (!rows)
			err(EXIT_FAILURE, "memory allocation");
		row = &rows[nr_rows - 1];
		row->mode = mode;
		row->what = what;
		row->cpus = nr_cpus;
		row->usecs = calloc(nr_policies * repeats, sizeof(*row->usecs));
		if (!row->usecs)
			err(EXIT_FAILURE, "memory allocation");
	}
	row->usecs[policy * repeats + repeat] = usecs;
}

/* Begins a line of the simple format. */
static void begin_line(const char *mode, unsigned int policy, unsigned int repeat)
{
	printf("repeat %u", repeat + 1);
	if (compare)
		printf(" policy %s mode %s cpus %u", policies[policy], mode, nr_cpus);
}

static void sample_trips(unsigned int policy, unsigned int repeat)
{
	static const char *const names[2][2][2] = {
		{ { "threads", "threads-flush" }, { "threads-futex", "threads-futex-flush" } },
		{ { "processes", "processes-flush" },
		  { "processes-futex", "processes-futex-flush" } },
	};
	const char *mode = names[use_processes][use_futexes][flush_mode];
	double rate = measure_trips();

	add_sample(mode, "trip", policy, repeat, rate ? USEC_PER_SEC * nr_pairs / rate : 0);
	if (bench_format == BENCH_FORMAT_SIMPLE) {
		begin_line(mode, policy, repeat);
		printf(" trips_per_sec %.0f\n", rate);
	}
}

static void sample_exits(unsigned int policy, unsigned int repeat)
{
	static const char *const modes[] = { "exit-lazy", "exit-alone" };
	bool simple = bench_format == BENCH_FORMAT_SIMPLE;
	struct latencies latencies[EXIT_CASES] = {};
	enum exit_case which;
	enum quantile q;

	measure_exits(latencies);
	for (which = 0; which < EXIT_CASES; which++) {
		struct latencies *l = &latencies[which];

		qsort(l->usecs, l->nr, sizeof(*l->usecs), compare_doubles);
		if (simple) {
			begin_line("exit", policy, repeat);
			printf(" %s exits %zu", exit_case_names[which], l->nr);
		}
		for (q = 0; q < QUANTILES; q++) {
			add_sample(modes[which], quantile_names[q], policy, repeat,
				   quantile(l, q));
			if (simple)
				printf(" %s_ns %.0f", quantile_names[q],
				       NSEC_PER_USEC * quantile(l, q));
		}
		if (simple)
			printf("\n");
		zfree(&l->usecs);
	}
}

/* Under all policies, another one first each time. */
static void sample(unsigned int pairs, unsigned int repeat)
{
	unsigned int turn;

	nr_pairs = pairs;
	nr_cpus = 2 * pairs;
	for (turn = 0; turn < nr_policies; turn++) {
		unsigned int policy = (repeat + turn) % nr_policies;

		if (compare)
			change_policy(policies[policy]);
		if (exit_mode)
			sample_exits(policy, repeat);
		else
			sample_trips(policy, repeat);
	}
}

/* The mode that the options ask for, or with --compare alone each of them. */
static void sample_all(void)
{
	static bool *const modes[] = {
		NULL, &use_futexes, &use_processes, &flush_mode, &exit_mode
	};
	bool all = compare && !(use_futexes || use_processes || flush_mode || exit_mode);
	unsigned int pairs = nr_pairs, repeat, i;

	for (repeat = 0; repeat < repeats; repeat++) {
		for (i = 0; i < (all ? ARRAY_SIZE(modes) : 1); i++) {
			if (all && modes[i])
				*modes[i] = true;
			if (one_pair_too && pairs > 1 && !exit_mode)
				sample(1, repeat);
			sample(pairs, repeat);
			if (all && modes[i])
				*modes[i] = false;
		}
	}
}

/* Of values, or of their ratios to others, each to that of the same repeat. */
static struct spread spread_of(const double *values, const double *others)
{
	double *sorted = calloc(repeats, sizeof(*sorted));
	struct spread spread;
	unsigned int i;

	if (!sorted)
		err(EXIT_FAILURE, "memory allocation");
	for (i = 0; i < repeats; i++)
		sorted[i] = others ? values[i] / others[i] : values[i];
	qsort(sorted, repeats, sizeof(*sorted), compare_doubles);
	spread.median = (sorted[(repeats - 1) / 2] + sorted[repeats / 2]) / 2;
	spread.min = sorted[0];
	spread.max = sorted[repeats - 1];
	free(sorted);
	return spread;
}

static void print_row(const struct row *row)
{
	bool simple = bench_format == BENCH_FORMAT_SIMPLE;
	unsigned int policy;

	if (!simple)
		printf(" %s, %u CPUs, %s\n", row->mode, row->cpus, row->what);
	for (policy = 0; policy < nr_policies; policy++) {
		const double *usecs = row->usecs + policy * repeats;
		struct spread s = spread_of(usecs, NULL), ratio = spread_of(usecs, row->usecs);

		if (simple && policy)
			printf("ratio %s to %s mode %s cpus %u %s median %.4f min %.4f max %.4f\n",
			       policies[policy], policies[0], row->mode, row->cpus, row->what,
			       ratio.median, ratio.min, ratio.max);
		if (simple)
			continue;
		printf(" %14.3f usecs  (%.3f .. %.3f)", s.median, s.min, s.max);
		if (compare)
			printf("  %s", policies[policy]);
		if (policy)
			printf("  %.3f (%.3f .. %.3f) of %s", ratio.median, ratio.min, ratio.max,
			       policies[0]);
		printf("\n");
	}
}

static void print_cpus(void)
{
	bool simple = bench_format == BENCH_FORMAT_SIMPLE;
	struct worker *w;

	if (!simple)
		printf("\n %6s %12s %s\n", "CPU", "trips/sec", "switches/trip");
	for (w = control->workers; w < control->workers + nr_cpus; w++)
		printf(simple ? "cpu %d trips_per_sec %.0f switches_per_trip %.3f\n" :
				" %6d %12.0f %13.3f\n", w->cpu, w->rate, w->switches_per_trip);
}

int bench_sched_lazy_tlb(int argc, const char **argv)
{
	char *before, *after;
	unsigned int i;

	argc = parse_options(argc, argv, options, bench_sched_lazy_tlb_usage, 0);
	if (argc) {
		usage_with_options(bench_sched_lazy_tlb_usage, options);
		exit(EXIT_FAILURE);
	}

	page_size = sysconf(_SC_PAGESIZE);
	check_options();
	choose_cpus();
	allocate_control();
	if (compare)
		open_policies();
	/* Where processes whose exit is measured begin. */
	if (pin_to(cpus[0]))
		fail(errno, HINT_CPUS, "sched_setaffinity, CPU %d", cpus[0]);

	print_setup();
	before = read_counters();
	sample_all();
	after = read_counters();
	for (i = 0; i < nr_rows; i++)
		print_row(&rows[i]);
	if (!compare && !exit_mode)
		print_cpus();
	print_counters(before, after);

	if (sched_setaffinity(0, allowed_size, allowed))
		err(EXIT_FAILURE, "sched_setaffinity");
	CPU_FREE(allowed);
	for (i = 0; i < nr_rows; i++)
		free(rows[i].usecs);
	free(rows);
	free(after);
	free(before);
	free(cpus);
	return 0;
}
