// SPDX-License-Identifier: GPL-2.0
/*
 * Much at once of what makes CPUs lazy on an mm or ends one: exec, threads that
 * exit, kills, core dumps, ptrace(2), membarrier(2), CPU hotplug, changes of the
 * policy and others. Each ingredient is done by a process of its own, some of
 * them at a time, in an order drawn from a seed. In the end no process, no
 * reference and no mm may be left.
 *
 * LAZY_TLB_SEED repeats a run, LAZY_TLB_SECONDS makes it longer, and
 * LAZY_TLB_TORTURE=name,name leaves out all other ingredients. What disturbs the
 * whole machine is done if it is asked for: CPU hotplug with LAZY_TLB_HOTPLUG=1,
 * the OOM killer with LAZY_TLB_OOM=1, or where the kernel has lazy TLB policies
 * unless that is 0.
 *
 * kthread_use_mm() is not in here: its users need hardware or drivers. The KUnit
 * suite has it.
 */
#include "race.h"

#include <assert.h>
#include <dirent.h>
#include <linux/bpf.h>
#include <linux/io_uring.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>

#ifndef SYS_io_uring_setup
#define SYS_io_uring_setup	425
#endif
#ifndef SYS_bpf
#define SYS_bpf			__NR_bpf
#endif

#define EFIVARS		"/sys/firmware/efi/efivars"

#define MAX_INGREDIENTS	32

/* What is counted, for all ingredients together. */
enum event {
	EXITS,
	EXECS,
	THREADS,
	UNMAPS,
	KILLS,
	MRELEASES,
	CORES,
	TRACES,
	BARRIERS,
	HOTPLUGS,
	OOMS,
	TOGGLES,
	POLICIES,
	PROGRAMS,
	EFI_CALLS,
	RINGS,
	ADVICES,
	UFFDS,
	NR_EVENTS
};

static const char * const event_name[NR_EVENTS] = {
	[EXITS] = "exits",
	[EXECS] = "execs",
	[THREADS] = "thread exits",
	[UNMAPS] = "unmaps",
	[KILLS] = "kills",
	[MRELEASES] = "mreleases",
	[CORES] = "cores",
	[TRACES] = "traces",
	[BARRIERS] = "membarriers",
	[HOTPLUGS] = "hotplug cycles",
	[OOMS] = "OOM kills",
	[TOGGLES] = "toggles",
	[POLICIES] = "policy changes",
	[PROGRAMS] = "BPF programs",
	[EFI_CALLS] = "EFI calls",
	[RINGS] = "rings",
	[ADVICES] = "advices",
	[UFFDS] = "userfaultfds",
};

/* Shared by all processes. */
struct tally {
	atomic_long events[NR_EVENTS];
	atomic_long units[MAX_INGREDIENTS];
	atomic_bool stop;
};

/* Files that switch a static key. */
static const char * const key_file[] = {
	"/proc/sys/kernel/timer_migration",
	"/proc/sys/kernel/sched_schedstats",
};

/* Control groups, in one of their two versions. */
struct memcg {
	char dir[PATH_MAX];	/* empty: there is none */
	const char *limit;
	bool mounted;		/* by this test */
	bool enabled;		/* by this test */
	char root[PATH_MAX - 64];
};

/* The same for all processes of a test, set before the first one starts. */
static struct {
	struct lazy_cpus cpus;
	struct lazy_cpus can;	/* CPUs that can be taken offline */
	struct tally *tally;
	bool known;		/* the policy */
	char policy[32];	/* what was there before */
	char dir[32];		/* for files */
	char key[ARRAY_SIZE(key_file)][16];	/* what was there before */
	struct memcg memcg;
	char efi[PATH_MAX];	/* a variable */
	/* Not for them, but for the test itself. */
	int nr;				/* of those that this machine has */
	int order[MAX_INGREDIENTS];
	pid_t pids[MAX_INGREDIENTS];	/* of those in order[] that run now */
} storm;

static void count(enum event event, long nr)
{
	atomic_fetch_add(&storm.tally->events[event], nr);
}

struct ingredient {
	const char *name;
	/* Why this kernel or this machine cannot have it, or NULL. */
	const char *(*lacks)(void);
	/* False if nothing came of it, which does no harm but does not count. */
	bool (*unit)(unsigned int *seed);
	int command;		/* of membarrier(2), or madvise(2) */
};

/* What this process is for. */
static const struct ingredient *ingredient;

#define fail(fmt, ...)	lazy_fail("%s: " fmt, ingredient->name, ##__VA_ARGS__)

/* ---- processes ------------------------------------------------------- */

/* Where the parent ends so does the child: a given up test leaves nothing. */
static pid_t spawn(void)
{
	pid_t parent = getpid();
	pid_t pid = fork();

	if (pid < 0)
		lazy_fail("fork: %s", strerror(errno));
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(1);
	}
	return pid;
}

static int reap(pid_t pid)
{
	int status;

	if (waitpid(pid, &status, 0) != pid)
		fail("waitpid: %s", strerror(errno));
	count(EXITS, 1);
	return status;
}

static void reap_exited(pid_t pid, int code)
{
	int status = reap(pid);

	if (!WIFEXITED(status) || WEXITSTATUS(status) != code)
		fail("ended with %#x, not with code %d", status, code);
}

static void check_killed(int status)
{
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
		fail("ended with %#x, not killed", status);
	count(KILLS, 1);
}

static void reap_killed(pid_t pid)
{
	check_killed(reap(pid));
}

/* Tell a process that waits in await(), or be told. */
static void tell(int fd)
{
	if (!lazy_write(fd, "x", 1))
		fail("write: %s", strerror(errno));
}

/* False if the other side is gone. */
static bool await(int fd)
{
	char byte;
	ssize_t n;

	do {
		n = read(fd, &byte, 1);
	} while (n < 0 && errno == EINTR);
	return n == 1;
}

static void make_pipe(int fds[2])
{
	if (pipe2(fds, O_CLOEXEC))
		fail("pipe: %s", strerror(errno));
}

static void go_somewhere(unsigned int *seed)
{
	lazy_go_somewhere(&storm.cpus, seed);
}

static bool one_of(unsigned int *seed, unsigned int nr)
{
	return lazy_random(seed) % nr == 0;
}

static struct lazy_crowd crowd;

/* Threads that are blocked on some other CPUs, or on none. */
static void start_crowd(unsigned int *seed)
{
	crowd.anywhere = true;
	lazy_crowd_start(&crowd, &storm.cpus, lazy_random(seed) % storm.cpus.nr);
}

static atomic_bool mapper_stops;

/* Page tables come and go; what they map is protected in between. */
static void *map_and_unmap(void *unused)
{
	size_t page = sysconf(_SC_PAGESIZE);
	size_t span = page / 8 * page, size = 3 * span;
	char *area;
	int i;

	(void)unused;
	do {
		area = mmap(NULL, size, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (area == MAP_FAILED)
			fail("mmap: %s", strerror(errno));
		/* EINVAL: a kernel without huge pages, which is as good. */
		if (madvise(area, size, MADV_NOHUGEPAGE) && errno != EINVAL)
			fail("MADV_NOHUGEPAGE: %s", strerror(errno));
		for (i = 0; i < 3; i++)
			area[i * span] = 1;
		if (mprotect(area, span, PROT_READ) || munmap(area, span) ||
		    munmap(area + span, size - span))
			fail("mprotect or munmap: %s", strerror(errno));
		count(UNMAPS, 2);
	} while (!atomic_load(&mapper_stops));
	return NULL;
}

static void start_mapper(pthread_t *thread)
{
	if (pthread_create(thread, NULL, map_and_unmap, NULL))
		fail("pthread_create failed");
}

/* Has memory and threads to lose, and does not end by itself. */
static void big_process(unsigned int *seed)
{
	pthread_t mapper;

	if (mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0) == MAP_FAILED)
		fail("mmap: %s", strerror(errno));
	start_crowd(seed);
	if (one_of(seed, 2))
		start_mapper(&mapper);
	for (;;) {
		go_somewhere(seed);
		lazy_sleep_us(lazy_random(seed) % 2000);
	}
}

/* ---- ingredients ------------------------------------------------------ */

static bool unit_exec(unsigned int *seed)
{
	int code = 3 + lazy_random(seed) % 100;
	pid_t pid;

	go_somewhere(seed);
	pid = spawn();
	if (!pid) {
		if (one_of(seed, 2))
			start_crowd(seed);
		go_somewhere(seed);
		lazy_exec_self(code);
	}
	reap_exited(pid, code);
	count(EXECS, 1);
	return true;
}

/* By itself, so that nothing the caller keeps in registers depends on vfork(). */
static pid_t vfork_exec(int code)
{
	pid_t pid = vfork();

	if (!pid)
		lazy_exec_self(code);
	return pid;
}

static bool unit_vfork(unsigned int *seed)
{
	int code = 3 + lazy_random(seed) % 100;
	pid_t pid;

	go_somewhere(seed);
	pid = vfork_exec(code);
	if (pid < 0)
		fail("%s", strerror(errno));
	reap_exited(pid, code);
	count(EXECS, 1);
	return true;
}

static void exit_while_unmapping(unsigned int *seed)
{
	int rounds = 1 + lazy_random(seed) % 4;
	pthread_t mapper;
	int i;

	start_mapper(&mapper);
	crowd.once = true;
	crowd.anywhere = true;
	while (rounds--) {
		lazy_crowd_start(&crowd, &storm.cpus, storm.cpus.nr - 1);
		go_somewhere(seed);
		for (i = 0; i < crowd.nr; i++)
			pthread_join(crowd.helper[i].thread, NULL);
		count(THREADS, crowd.nr);
	}
	/* Or else in the middle of an unmapping. */
	if (one_of(seed, 2)) {
		atomic_store(&mapper_stops, true);
		pthread_join(mapper, NULL);
	}
}

static bool unit_exit_unmap(unsigned int *seed)
{
	pid_t pid;

	go_somewhere(seed);
	pid = spawn();
	if (!pid) {
		exit_while_unmapping(seed);
		_exit(0);
	}
	reap_exited(pid, 0);
	return true;
}

/* All children of the caller, and those whose parents did not wait for them. */
static void reap_all(void)
{
	int status;

	while (wait(&status) > 0) {
		if (status)
			fail("a process ended with %#x", status);
		count(EXITS, 1);
	}
}

static void bomb(int depth, unsigned int seed)
{
	int i;
	pid_t pid;

	for (i = 0; depth && i < 2; i++) {
		go_somewhere(&seed);
		/* These may outlive their parent. They end soon enough. */
		pid = fork();
		if (pid < 0)
			fail("fork: %s", strerror(errno));
		if (!pid) {
			bomb(depth - 1, seed + i);
			_exit(0);
		}
	}
	if (one_of(&seed, 2))
		reap_all();
}

static bool unit_fork_bomb(unsigned int *seed)
{
	int depth = 2 + lazy_random(seed) % 3;
	pid_t pid;

	pid = spawn();
	if (!pid) {
		bomb(depth, *seed);
		_exit(0);
	}
	reap_all();
	return true;
}

static pid_t start_big(unsigned int *seed)
{
	pid_t pid;

	go_somewhere(seed);
	pid = spawn();
	if (!pid)
		big_process(seed);
	/* At once as well. */
	if (!one_of(seed, 4))
		lazy_sleep_us(lazy_random(seed) % 20000);
	return pid;
}

static bool unit_kill(unsigned int *seed)
{
	pid_t pid = start_big(seed);

	if (kill(pid, SIGKILL))
		fail("%s", strerror(errno));
	reap_killed(pid);
	return true;
}

static const char *lacks_mrelease(void)
{
	int fd = syscall(SYS_pidfd_open, getpid(), 0);

	if (fd < 0)
		return "no pidfd_open(2)";
	close(fd);
	syscall(SYS_process_mrelease, -1, 0);
	if (errno != EBADF)
		return "no process_mrelease(2)";
	return NULL;
}

static bool unit_mrelease(unsigned int *seed)
{
	pid_t pid = start_big(seed);
	int pidfd = syscall(SYS_pidfd_open, pid, 0);

	if (pidfd < 0 || kill(pid, SIGKILL))
		fail("pidfd_open or kill: %s", strerror(errno));
	if (!syscall(SYS_process_mrelease, pidfd, 0))
		count(MRELEASES, 1);
	else if (errno != ESRCH && errno != EAGAIN)
		/* It may be gone already. */
		fail("process_mrelease: %s", strerror(errno));
	close(pidfd);
	reap_killed(pid);
	return true;
}

static const char *lacks_core(void)
{
	struct rlimit limit;
	char pattern[256];

	if (!lazy_read_file("/proc/sys/kernel/core_pattern", pattern, sizeof(pattern)))
		return "no core_pattern (CONFIG_COREDUMP)";
	if (*pattern == '\n' || strpbrk(pattern, "|/@"))
		return "core_pattern leads elsewhere";
	if (getrlimit(RLIMIT_CORE, &limit) || limit.rlim_max != RLIM_INFINITY)
		return "RLIMIT_CORE";
	if (!*storm.dir)
		return "no directory for them";
	return NULL;
}

static bool unit_core(unsigned int *seed)
{
	const struct rlimit limit = { RLIM_INFINITY, RLIM_INFINITY };
	struct dirent *entry;
	bool dumped;
	int status;
	pid_t pid;
	DIR *dir;

	go_somewhere(seed);
	pid = spawn();
	if (!pid) {
		if (chdir(storm.dir) || setrlimit(RLIMIT_CORE, &limit))
			fail("chdir or setrlimit: %s", strerror(errno));
		start_crowd(seed);
		go_somewhere(seed);
		abort();
	}
	status = reap(pid);
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT)
		fail("ended with %#x", status);
	dumped = WCOREDUMP(status);
	if (dumped)
		count(CORES, 1);

	dir = opendir(storm.dir);
	while (dir && (entry = readdir(dir)))
		unlinkat(dirfd(dir), entry->d_name, 0);
	if (dir)
		closedir(dir);
	return dumped;
}

enum trace {
	TRACE_ATTACH,		/* attach and detach, and kill */
	TRACE_EXIT,		/* the tracee ends, stops on its way, and goes on */
	TRACE_ORPHAN,		/* the tracer ends, and the tracee with it */
	TRACE_EXEC,
	NR_TRACES
};

static void wait_stopped(pid_t pid, int event)
{
	int status;

	if (waitpid(pid, &status, 0) != pid || !WIFSTOPPED(status) ||
	    (event && status >> 8 != (SIGTRAP | event << 8)))
		fail("the tracee did not stop as it should");
}

static void trace(long request, pid_t pid, long data)
{
	if (ptrace(request, pid, NULL, data))
		fail("ptrace request %ld: %s", request, strerror(errno));
}

static void tracee(enum trace how, int fd, unsigned int *seed)
{
	if (how == TRACE_EXEC) {
		trace(PTRACE_TRACEME, 0, 0);
		go_somewhere(seed);
		lazy_exec_self(7);
	}
	if (one_of(seed, 2))
		start_crowd(seed);
	go_somewhere(seed);
	/* All others are killed. */
	while (how != TRACE_EXIT)
		pause();
	await(fd);
	_exit(7);
}

static void tracer(unsigned int *seed)
{
	enum trace how = lazy_random(seed) % NR_TRACES;
	int fds[2];
	pid_t pid;

	make_pipe(fds);
	pid = spawn();
	if (!pid) {
		close(fds[1]);
		tracee(how, fds[0], seed);
	}
	close(fds[0]);
	go_somewhere(seed);
	switch (how) {
	case TRACE_ATTACH:
		trace(PTRACE_ATTACH, pid, 0);
		wait_stopped(pid, 0);
		errno = 0;
		ptrace(PTRACE_PEEKDATA, pid, &storm, 0);
		if (errno)
			fail("PTRACE_PEEKDATA: %s", strerror(errno));
		trace(PTRACE_DETACH, pid, 0);
		if (kill(pid, SIGKILL))
			fail("%s", strerror(errno));
		reap_killed(pid);
		break;
	case TRACE_EXIT:
		trace(PTRACE_SEIZE, pid, PTRACE_O_TRACEEXIT);
		close(fds[1]);
		wait_stopped(pid, PTRACE_EVENT_EXIT);
		trace(PTRACE_CONT, pid, 0);
		reap_exited(pid, 7);
		break;
	case TRACE_ORPHAN:
		trace(PTRACE_SEIZE, pid, PTRACE_O_EXITKILL);
		if (one_of(seed, 2)) {
			trace(PTRACE_INTERRUPT, pid, 0);
			wait_stopped(pid, PTRACE_EVENT_STOP);
		}
		break;
	default:
		wait_stopped(pid, 0);
		trace(PTRACE_CONT, pid, 0);
		reap_exited(pid, 7);
		count(EXECS, 1);
	}
	_exit(0);
}

static const char *lacks_ptrace(void)
{
	pid_t pid = spawn();
	int status;

	if (!pid)
		_exit(!!ptrace(PTRACE_TRACEME, 0, NULL, NULL));
	waitpid(pid, &status, 0);
	return status ? "no ptrace(2)" : NULL;
}

static bool unit_ptrace(unsigned int *seed)
{
	pid_t pid = spawn(), other;
	int status;

	if (!pid)
		tracer(seed);
	/* It may leave the tracee to this process. */
	while ((other = wait(&status)) > 0) {
		count(EXITS, 1);
		if (other != pid)
			check_killed(status);
		else if (status)
			fail("the tracer ended with %#x", status);
	}
	count(TRACES, 1);
	return true;
}

/*
 * An open /proc/PID/mem holds on to an mm without users: the final drop is for
 * whoever closes it.
 */
static const char *lacks_proc_mem(void)
{
	int fd = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return "no /proc/self/mem";
	close(fd);
	return NULL;
}

static bool unit_proc_mem(unsigned int *seed)
{
	int ready[2], end[2], fd;
	char path[64], byte;
	pid_t pid;

	make_pipe(ready);
	make_pipe(end);
	go_somewhere(seed);
	pid = spawn();
	if (!pid) {
		close(end[1]);
		start_crowd(seed);
		go_somewhere(seed);
		tell(ready[1]);
		await(end[0]);
		_exit(0);
	}
	close(ready[1]);
	close(end[0]);
	if (!await(ready[0]))
		fail("a child has failed");
	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		fail("%s: %s", path, strerror(errno));
	if (pread(fd, &byte, 1, (uintptr_t)&storm) != 1)
		fail("%s: %s", path, strerror(errno));
	close(ready[0]);
	close(end[1]);
	reap_exited(pid, 0);
	go_somewhere(seed);
	close(fd);
	return true;
}

static int registration(int command)
{
	switch (command) {
	case MEMBARRIER_CMD_PRIVATE_EXPEDITED:
		return MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED;
	case MEMBARRIER_CMD_GLOBAL_EXPEDITED:
		return MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED;
	}
	return 0;
}

static const char *lacks_membarrier(void)
{
	int commands = lazy_membarrier(MEMBARRIER_CMD_QUERY);

	if (commands < 0)
		return "no membarrier(2)";
	return commands & ingredient->command ? NULL : "not among the commands of membarrier(2)";
}

static bool unit_membarrier(unsigned int *seed)
{
	static struct lazy_race race;
	int command = ingredient->command, home, other;
	struct lazy_race_outcome out;
	pid_t pid;

	pid = spawn();
	if (!pid) {
		home = lazy_random(seed) % storm.cpus.nr;
		other = 1 + lazy_random(seed) % (storm.cpus.nr - 1);
		lazy_pin(0, storm.cpus.cpu[home]);
		race.cpu = storm.cpus.cpu[(home + other) % storm.cpus.nr];
		race.cmd = command;
		/* The global one waits until the whole machine has been quiet. */
		race.burst = command == MEMBARRIER_CMD_GLOBAL ? 4 : 20;
		race.crowded = true;
		race.seed = lazy_random(seed);
		if (registration(command) && lazy_membarrier(registration(command)))
			fail("cannot register: %s", strerror(errno));
		lazy_race(&race, &out);
		if (out.failed || out.forbidden)
			fail("%ld rounds, %ld calls failed, both saw 0 %ld",
			     out.rounds, out.failed, out.forbidden);
		count(BARRIERS, out.rounds);
		_exit(0);
	}
	reap_exited(pid, 0);
	return true;
}

static const char *lacks_hotplug(void)
{
	if (!lazy_env("LAZY_TLB_HOTPLUG", false))
		return "LAZY_TLB_HOTPLUG is not 1";
	return storm.can.nr ? NULL : "no CPU can be taken offline";
}

static bool unit_hotplug(unsigned int *seed)
{
	int cpu = storm.can.cpu[lazy_random(seed) % storm.can.nr];
	int online;

	for (online = 0; online < 2; online++) {
		if (!lazy_set_online(cpu, online))
			fail("CPU %d does not go %sline: %s", cpu,
			     online ? "on" : "off", strerror(errno));
		lazy_sleep_us(lazy_random(seed) % 50000);
	}
	count(HOTPLUGS, 1);
	return true;
}

static const char *lacks_oom(void)
{
	if (!lazy_env("LAZY_TLB_OOM", storm.known))
		return "LAZY_TLB_OOM is not 1";
	return access("/proc/sysrq-trigger", W_OK) ? "no /proc/sysrq-trigger" : NULL;
}

/* The first that the OOM killer takes. */
static pid_t start_victim(unsigned int *seed)
{
	int ready[2];
	pid_t pid;

	make_pipe(ready);
	go_somewhere(seed);
	pid = spawn();
	if (!pid) {
		if (!lazy_write_file("/proc/self/oom_score_adj", "1000"))
			fail("oom_score_adj: %s", strerror(errno));
		tell(ready[1]);
		close(ready[1]);
		big_process(seed);
	}
	close(ready[1]);
	if (!await(ready[0]))
		fail("a victim has failed");
	close(ready[0]);
	return pid;
}

/*
 * The kill comes some time after the request, which is refused while another
 * victim is being reaped. So that no late one hits a process of others, there
 * is a second victim as long as one could come.
 */
static bool unit_oom(unsigned int *seed)
{
	pid_t pid = start_victim(seed), spare = start_victim(seed), first;
	int requests = 0, status;
	double again = 0;

	do {
		if (lazy_now() >= again) {
			if (!lazy_write_file("/proc/sysrq-trigger", "f"))
				fail("sysrq-trigger: %s", strerror(errno));
			requests++;
			again = lazy_now() + 5;
		}
		lazy_sleep_us(10000);
		first = waitpid(-1, &status, WNOHANG);
		if (first < 0)
			fail("waitpid: %s", strerror(errno));
	} while (!first);
	count(EXITS, 1);
	check_killed(status);
	count(OOMS, 1);
	if (requests > 1)
		lazy_sleep_us(2000000);
	pid = first == pid ? spare : pid;
	kill(pid, SIGKILL);
	reap_killed(pid);
	/* The kernel has a lot to say about each. */
	lazy_sleep_us(lazy_random(seed) % 300000);
	return true;
}

/* Code is changed under running CPUs, on x86 by way of an mm of its own. */
static const char *lacks_text_poke(void)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(key_file); i++)
		if (*storm.key[i])
			return NULL;
	return "no file that switches a static key";
}

static bool unit_text_poke(unsigned int *seed)
{
	size_t i = lazy_random(seed) % ARRAY_SIZE(key_file);
	char *before;

	while (!*storm.key[i])
		i = (i + 1) % ARRAY_SIZE(key_file);
	before = storm.key[i];
	go_somewhere(seed);
	if (!lazy_write_file(key_file[i], *before == '0' ? "1" : "0") ||
	    !lazy_write_file(key_file[i], before))
		fail("%s: %s", key_file[i], strerror(errno));
	count(TOGGLES, 2);
	lazy_sleep_us(lazy_random(seed) % 2000);
	return true;
}

/* The policy changes under mms that were borrowed under another. */
static const char *lacks_policy(void)
{
	return access(LAZY_TLB_POLICY, W_OK) ? "no " LAZY_TLB_POLICY " to write" : NULL;
}

static bool unit_policy(unsigned int *seed)
{
	const char *policy = lazy_policies[lazy_random(seed) % LAZY_NR_POLICIES];

	go_somewhere(seed);
	if (!lazy_set_policy(policy))
		fail("%s: %s", policy, strerror(errno));
	count(POLICIES, 1);
	lazy_sleep_us(lazy_random(seed) % 2000);
	return true;
}

/*
 * A JIT writes code in the same way, but without the breakpoints that static
 * keys need on x86.
 */
static int load_program(void)
{
	static const struct bpf_insn code[] = {
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K },	/* r0 = 0 */
		{ .code = BPF_JMP | BPF_EXIT },
	};
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.prog_type = BPF_PROG_TYPE_SYSCALL;
	attr.prog_flags = BPF_F_SLEEPABLE;
	attr.insns = (uintptr_t)code;
	attr.insn_cnt = ARRAY_SIZE(code);
	attr.license = (uintptr_t)"GPL";
	return syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof(attr));
}

static const char *lacks_bpf(void)
{
	char jit[16];
	int fd;

	/* Root can read it. */
	if (!lazy_read_file("/proc/sys/net/core/bpf_jit_enable", jit, sizeof(jit)))
		*jit = '\0';
	if (*jit == '0')
		return "bpf_jit_enable is 0";
	fd = load_program();
	if (fd < 0)
		return strerror(errno);
	close(fd);
	return NULL;
}

static bool unit_bpf(unsigned int *seed)
{
	int fd;

	go_somewhere(seed);
	fd = load_program();
	if (fd < 0)
		fail("%s", strerror(errno));
	/* Freed after a grace period, and overwritten then. */
	close(fd);
	count(PROGRAMS, 1);
	lazy_sleep_us(lazy_random(seed) % 2000);
	return true;
}

/* The firmware has an mm of its own as well. */
static const char *lacks_efi(void)
{
	struct dirent *entry;
	char value[4096];
	DIR *dir;

	/* Distributions have mounted it. */
	if (!access("/sys/firmware/efi", F_OK) && mount("efivarfs", EFIVARS, "efivarfs", 0, NULL) &&
	    errno != EBUSY)
		return "efivarfs cannot be mounted";
	dir = opendir(EFIVARS);
	while (dir && !*storm.efi && (entry = readdir(dir))) {
		snprintf(storm.efi, sizeof(storm.efi), EFIVARS "/%s", entry->d_name);
		/* Those that are too long for this are not for it. */
		if (entry->d_type != DT_REG || !lazy_read_file(storm.efi, value, sizeof(value)))
			*storm.efi = '\0';
	}
	if (dir)
		closedir(dir);
	return *storm.efi ? NULL : "no variable of EFI can be read";
}

static bool unit_efi(unsigned int *seed)
{
	char value[4096];

	go_somewhere(seed);
	if (!lazy_read_file(storm.efi, value, sizeof(value)))
		fail("%s: %s", storm.efi, strerror(errno));
	count(EFI_CALLS, 1);
	lazy_sleep_us(lazy_random(seed) % 2000);
	return true;
}

static const char *lacks_memcg(void)
{
	return *storm.memcg.dir ? NULL : "no control groups that limit memory";
}

static bool write_in(const char *dir, const char *name, const char *text)
{
	char path[PATH_MAX + 64];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	return lazy_write_file(path, text);
}

static bool unit_memcg(unsigned int *seed)
{
	size_t size = 32 << 20, page = sysconf(_SC_PAGESIZE), i;
	int status;
	char *area;
	pid_t pid;

	go_somewhere(seed);
	pid = spawn();
	if (!pid) {
		if (!write_in(storm.memcg.dir, "cgroup.procs", "0"))
			fail("cgroup.procs: %s", strerror(errno));
		start_crowd(seed);
		area = mmap(NULL, size, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (area == MAP_FAILED)
			fail("mmap: %s", strerror(errno));
		for (i = 0; i < size; i += page)
			area[i] = 1;
		_exit(0);
	}
	status = reap(pid);
	/* It had swap. */
	if (WIFEXITED(status) && !WEXITSTATUS(status))
		return false;
	check_killed(status);
	count(OOMS, 1);
	lazy_sleep_us(lazy_random(seed) % 100000);
	return true;
}

static int set_up_ring(bool poller)
{
	struct io_uring_params params = { 0 };

	/* A thread of the kernel's own, with this mm. */
	if (poller)
		params.flags = IORING_SETUP_SQPOLL;
	return syscall(SYS_io_uring_setup, 4, &params);
}

static const char *lacks_io_uring(void)
{
	int fd = set_up_ring(false);

	if (fd < 0)
		return strerror(errno);
	close(fd);
	return NULL;
}

/* A ring holds on to the mm, until a kernel thread has taken it down. */
static bool unit_io_uring(unsigned int *seed)
{
	int status;
	pid_t pid;

	go_somewhere(seed);
	pid = spawn();
	if (!pid) {
		/* Those of others may still be there and use up a limit. */
		if (set_up_ring(one_of(seed, 2)) < 0)
			_exit(2);
		start_crowd(seed);
		go_somewhere(seed);
		_exit(0);
	}
	status = reap(pid);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 2)
		return false;
	if (status)
		fail("ended with %#x", status);
	count(RINGS, 1);
	return true;
}

static char *map_area(size_t size)
{
	char *area = mmap(NULL, size, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (area == MAP_FAILED)
		fail("mmap: %s", strerror(errno));
	return area;
}

/* khugepaged and ksmd hold on to an mm, and may be the last to drop it. */
static const char *lacks_advice(void)
{
	size_t size = sysconf(_SC_PAGESIZE);
	char *area = map_area(size);
	int error = madvise(area, size, ingredient->command) ? errno : 0;

	munmap(area, size);
	return error ? strerror(error) : NULL;
}

static bool unit_advice(unsigned int *seed)
{
	size_t size = 4 << 20, page = sysconf(_SC_PAGESIZE), i;
	char *area;
	pid_t pid;

	go_somewhere(seed);
	pid = spawn();
	if (!pid) {
		area = map_area(size);
		if (madvise(area, size, ingredient->command))
			fail("%s", strerror(errno));
		start_crowd(seed);
		for (i = 0; i < size; i += page)
			area[i] = 1;
		lazy_sleep_us(lazy_random(seed) % 20000);
		go_somewhere(seed);
		_exit(0);
	}
	reap_exited(pid, 0);
	count(ADVICES, 1);
	return true;
}

static int open_userfaultfd(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC);

	if (fd >= 0 && ioctl(fd, UFFDIO_API, &api))
		fail("UFFDIO_API: %s", strerror(errno));
	return fd;
}

static const char *lacks_userfaultfd(void)
{
	int fd = open_userfaultfd();

	if (fd < 0)
		return strerror(errno);
	close(fd);
	return NULL;
}

static void *touch(void *area)
{
	*(char *)area = 1;
	return NULL;
}

/* So does a userfaultfd. The thread waits in vain for a page. */
static bool unit_userfaultfd(unsigned int *seed)
{
	size_t size = sysconf(_SC_PAGESIZE);
	struct uffdio_register area = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	pthread_t thread;
	pid_t pid;
	int fd;

	go_somewhere(seed);
	pid = spawn();
	if (!pid) {
		fd = open_userfaultfd();
		area.range.start = (uintptr_t)map_area(size);
		area.range.len = size;
		if (fd < 0 || ioctl(fd, UFFDIO_REGISTER, &area))
			fail("UFFDIO_REGISTER: %s", strerror(errno));
		/* A child has it for a while longer, or not as long. */
		if (one_of(seed, 2) && !fork()) {
			go_somewhere(seed);
			lazy_sleep_us(lazy_random(seed) % 2000);
			_exit(0);
		}
		if (pthread_create(&thread, NULL, touch, (void *)(uintptr_t)area.range.start))
			fail("pthread_create failed");
		go_somewhere(seed);
		lazy_sleep_us(lazy_random(seed) % 1000);
		_exit(0);
	}
	reap_all();
	count(UFFDS, 1);
	return true;
}

static const struct ingredient ingredients[] = {
	{ .name = "exec", .unit = unit_exec },
	{ .name = "vfork", .unit = unit_vfork },
	{ .name = "exit_unmap", .unit = unit_exit_unmap },
	{ .name = "fork_bomb", .unit = unit_fork_bomb },
	{ .name = "kill", .unit = unit_kill },
	{ .name = "mrelease", .unit = unit_mrelease, .lacks = lacks_mrelease },
	{ .name = "core", .unit = unit_core, .lacks = lacks_core },
	{ .name = "ptrace", .unit = unit_ptrace, .lacks = lacks_ptrace },
	{ .name = "proc_mem", .unit = unit_proc_mem, .lacks = lacks_proc_mem },
	{ .name = "membarrier_private", .unit = unit_membarrier, .lacks = lacks_membarrier,
	  .command = MEMBARRIER_CMD_PRIVATE_EXPEDITED },
	{ .name = "membarrier_global", .unit = unit_membarrier, .lacks = lacks_membarrier,
	  .command = MEMBARRIER_CMD_GLOBAL },
	{ .name = "membarrier_global_expedited", .unit = unit_membarrier,
	  .lacks = lacks_membarrier, .command = MEMBARRIER_CMD_GLOBAL_EXPEDITED },
	{ .name = "hotplug", .unit = unit_hotplug, .lacks = lacks_hotplug },
	{ .name = "oom", .unit = unit_oom, .lacks = lacks_oom },
	{ .name = "text_poke", .unit = unit_text_poke, .lacks = lacks_text_poke },
	{ .name = "policy", .unit = unit_policy, .lacks = lacks_policy },
	{ .name = "bpf", .unit = unit_bpf, .lacks = lacks_bpf },
	{ .name = "efi", .unit = unit_efi, .lacks = lacks_efi },
	{ .name = "memcg", .unit = unit_memcg, .lacks = lacks_memcg },
	{ .name = "io_uring", .unit = unit_io_uring, .lacks = lacks_io_uring },
	{ .name = "thp", .unit = unit_advice, .lacks = lacks_advice, .command = MADV_HUGEPAGE },
	{ .name = "ksm", .unit = unit_advice, .lacks = lacks_advice, .command = MADV_MERGEABLE },
	{ .name = "userfaultfd", .unit = unit_userfaultfd, .lacks = lacks_userfaultfd },
};

#define NR_INGREDIENTS	((int)ARRAY_SIZE(ingredients))

static_assert(ARRAY_SIZE(ingredients) <= MAX_INGREDIENTS, "the tally has a limit");

/* ---- the machine ------------------------------------------------------ */

static void keys_save(void)
{
	char value[16];
	size_t i;

	for (i = 0; i < ARRAY_SIZE(key_file); i++) {
		if (!access(key_file[i], W_OK) &&
		    lazy_read_file(key_file[i], value, sizeof(value)) &&
		    (!strcmp(value, "0\n") || !strcmp(value, "1\n")))
			memcpy(storm.key[i], value, sizeof(value));
	}
}

static bool keys_restore(void)
{
	bool ok = true;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(key_file); i++)
		if (*storm.key[i])
			ok &= lazy_write_file(key_file[i], storm.key[i]);
	return ok;
}

/* Whether @word is among the words of @text. */
static bool has_word(const char *text, const char *separators, const char *word)
{
	size_t len;

	for (; *text; text += len + !!text[len]) {
		len = strcspn(text, separators);
		if (len == strlen(word) && !strncmp(text, word, len))
			return true;
	}
	return false;
}

/* The second version's root, where memory can be limited below it. */
static bool memcg_unified(struct memcg *memcg)
{
	char path[PATH_MAX], words[256];

	snprintf(path, sizeof(path), "%s/cgroup.controllers", memcg->root);
	if (!lazy_read_file(path, words, sizeof(words)) || !has_word(words, "\n ", "memory"))
		return false;
	snprintf(path, sizeof(path), "%s/cgroup.subtree_control", memcg->root);
	if (!lazy_read_file(path, words, sizeof(words)))
		*words = '\0';
	if (!has_word(words, "\n ", "memory")) {
		if (!lazy_write_file(path, "+memory"))
			return false;
		memcg->enabled = true;
	}
	memcg->limit = "memory.max";
	return true;
}

static bool memcg_find(struct memcg *memcg)
{
	char type[16], options[256], line[PATH_MAX + 512];
	FILE *mounts = fopen("/proc/mounts", "r");
	bool found = false;

	while (mounts && !found && fgets(line, sizeof(line), mounts)) {
		if (sscanf(line, "%*s %4000s %15s %255s", memcg->root, type, options) != 3)
			continue;
		if (!strcmp(type, "cgroup") && has_word(options, ",", "memory")) {
			memcg->limit = "memory.limit_in_bytes";
			found = true;
		} else if (!strcmp(type, "cgroup2")) {
			found = memcg_unified(memcg);
		}
	}
	if (mounts)
		fclose(mounts);
	if (found || !*storm.dir)
		return found;

	snprintf(memcg->root, sizeof(memcg->root), "%s/cgroup", storm.dir);
	if (mkdir(memcg->root, 0755))
		return false;
	memcg->mounted = !mount("cgroup2", memcg->root, "cgroup2", 0, NULL);
	return memcg->mounted && memcg_unified(memcg);
}

static void memcg_set_up(struct memcg *memcg)
{
	if (!memcg_find(memcg))
		return;
	snprintf(memcg->dir, sizeof(memcg->dir), "%s/lazy_tlb.%d", memcg->root, getpid());
	if (mkdir(memcg->dir, 0755)) {
		*memcg->dir = '\0';
		return;
	}
	/* Where there is no swap there is no such file. */
	write_in(memcg->dir, "memory.swap.max", "0");
	if (!write_in(memcg->dir, memcg->limit, "8388608")) {
		rmdir(memcg->dir);
		*memcg->dir = '\0';
	}
}

/* True if everything is as it was. */
static bool memcg_take_down(struct memcg *memcg)
{
	double end = lazy_now() + 10;
	bool ok = true;

	/* The last process leaves it a little after its end. */
	while (*memcg->dir && rmdir(memcg->dir)) {
		if (lazy_now() >= end) {
			ok = false;
			break;
		}
		lazy_sleep_us(10000);
	}
	if (memcg->enabled)
		ok &= write_in(memcg->root, "cgroup.subtree_control", "-memory");
	if (memcg->mounted)
		ok &= !umount(memcg->root);
	return ok;
}

/* ---- the test --------------------------------------------------------- */

FIXTURE(torture)
{
	struct lazy_test t;
	double seconds;
};

FIXTURE_SETUP(torture)
{
	lazy_setup(_metadata, &self->t, false);
	if (_metadata->exit_code)
		return;
	self->seconds = lazy_env("LAZY_TLB_SECONDS", 5);
	TH_LOG("LAZY_TLB_SECONDS=%.0f", self->seconds);
	storm.tally = mmap(NULL, sizeof(*storm.tally), PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, storm.tally);
	storm.cpus = self->t.cpus;
	storm.known = self->t.known;
	memcpy(storm.policy, self->t.policy, sizeof(storm.policy));
	lazy_cpus_can_offline(&storm.cpus, &storm.can);
	snprintf(storm.dir, sizeof(storm.dir), "/tmp/lazy_tlb.XXXXXX");
	if (!mkdtemp(storm.dir))
		*storm.dir = '\0';
	keys_save();
	memcg_set_up(&storm.memcg);
}

FIXTURE_TEARDOWN(torture)
{
	char path[64];
	int i;

	/* There are some only if this test has failed. */
	for (i = 0; i < storm.nr; i++) {
		if (storm.pids[i] > 0) {
			kill(storm.pids[i], SIGKILL);
			waitpid(storm.pids[i], NULL, 0);
		}
	}
	if (!lacks_hotplug())
		for (i = 0; i < storm.can.nr; i++)
			EXPECT_TRUE(lazy_set_online(storm.can.cpu[i], true));
	if (!lacks_policy())
		EXPECT_TRUE(lazy_set_policy(storm.policy));
	EXPECT_TRUE(keys_restore());
	EXPECT_TRUE(memcg_take_down(&storm.memcg));
	if (*storm.dir) {
		snprintf(path, sizeof(path), "%s/cgroup", storm.dir);
		rmdir(path);
		EXPECT_EQ(0, rmdir(storm.dir));
	}
	lazy_teardown(_metadata, &self->t);
}

static void torture(int index, unsigned int seed)
{
	bool done = false;
	int late = 0;

	ingredient = &ingredients[index];
	/* What a unit leaves behind is for this process to see the end of. */
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	/* At least one, however slow the machine is. */
	while (!atomic_load(&storm.tally->stop) || (!done && late++ < 20)) {
		if (!ingredient->unit(&seed))
			continue;
		atomic_fetch_add(&storm.tally->units[index], 1);
		done = true;
	}
	_exit(0);
}

static const char *name_of(pid_t pid)
{
	int i;

	for (i = 0; i < storm.nr; i++)
		if (storm.pids[i] == pid)
			return ingredients[storm.order[i]].name;
	return "somebody";
}

/* The ingredients in order[@first] and so on, all at once. */
static void wave(struct __test_metadata *_metadata,
		 int first, int nr, double seconds, unsigned int *seed)
{
	char names[512] = "";
	unsigned int own;
	int i, status;
	double end;
	pid_t pid;

	atomic_store(&storm.tally->stop, false);
	for (i = first; i < first + nr; i++) {
		strcat(names, " ");
		strcat(names, ingredients[storm.order[i]].name);
	}
	TH_LOG("%ld exits; now%s", atomic_load(&storm.tally->events[EXITS]), names);
	for (i = first; i < first + nr; i++) {
		own = lazy_random(seed);
		storm.pids[i] = spawn();
		if (!storm.pids[i])
			torture(storm.order[i], own);
	}
	end = lazy_now() + seconds;
	while (lazy_now() < end) {
		lazy_sleep_us(20000);
		/* A process that is gone has found something: do not wait. */
		pid = waitpid(-1, &status, WNOHANG);
		ASSERT_EQ(0, pid)
			TH_LOG("%s ended with %#x", name_of(pid), status);
	}
	atomic_store(&storm.tally->stop, true);
	for (i = first; i < first + nr; i++) {
		pid = wait(&status);
		ASSERT_LT(0, pid);
		ASSERT_EQ(0, status)
			TH_LOG("%s ended with %#x", name_of(pid), status);
	}
	memset(storm.pids, 0, sizeof(storm.pids));
}

/* Those that this machine has go to order[]. */
static void choose(struct __test_metadata *_metadata)
{
	const char *only = getenv("LAZY_TLB_TORTURE");
	const char *why;
	int i;

	for (i = 0; i < NR_INGREDIENTS; i++) {
		ingredient = &ingredients[i];
		why = NULL;
		if (only && *only && !has_word(only, ",", ingredient->name))
			why = "not in LAZY_TLB_TORTURE";
		else if (ingredient->lacks)
			why = ingredient->lacks();
		if (why)
			TH_LOG("left out: %s: %s", ingredient->name, why);
		else
			storm.order[storm.nr++] = i;
	}
}

static void shuffle(int *order, int nr, unsigned int *seed)
{
	int i, j, tmp;

	for (i = nr - 1; i > 0; i--) {
		j = lazy_random(seed) % (i + 1);
		tmp = order[i];
		order[i] = order[j];
		order[j] = tmp;
	}
}

/* The storm is over: CPUs become lazy as ever, and hold what they should. */
static void become_lazy(const struct lazy_cpus *cpus, void *refcount)
{
	struct lazy_self s;

	lazy_occupy(&crowd, cpus, cpus->nr - 1, LAZY_BLOCK, &s);
	lazy_check_counts(*(bool *)refcount, "after the storm");
}

static void check_settled(struct __test_metadata *_metadata, struct lazy_test *t)
{
	struct lazy_self s;
	int status;

	if (!t->known || !lazy_self(&s)) {
		TH_LOG("left out: lazy state: no " LAZY_TLB_SELF);
		return;
	}
	status = lazy_run(&t->cpus, become_lazy, &t->refcount);
	lazy_assert_exited(_metadata, status, 0);
}

TEST_F_TIMEOUT(torture, storm, LAZY_TIMEOUT)
{
	unsigned int seed = self->t.seed;
	struct lazy_leftovers before;
	int i, first, waves, width;
	char text[1024];
	size_t len = 0;
	double slice, end;

	choose(_metadata);
	if (!storm.nr)
		SKIP(return, "nothing can run");
	lazy_leftovers(&before);

	/* As many at a time as keep all CPUs busy, but all of them once. */
	width = self->t.cpus.nr + 2;
	waves = (storm.nr + width - 1) / width;
	width = (storm.nr + waves - 1) / waves;
	slice = self->seconds / waves;
	if (slice > 5)
		slice = 5;
	end = lazy_now() + self->seconds;
	do {
		shuffle(storm.order, storm.nr, &seed);
		for (first = 0; first < storm.nr; first += width)
			wave(_metadata, first,
			     width < storm.nr - first ? width : storm.nr - first,
			     slice, &seed);
	} while (lazy_now() < end);

	for (i = 0; i < NR_EVENTS; i++)
		len += snprintf(text + len, sizeof(text) - len, ", %ld %s",
				atomic_load(&storm.tally->events[i]), event_name[i]);
	TH_LOG("torture: seed %u%s", self->t.seed, text);
	for (i = 0; i < storm.nr; i++)
		EXPECT_LT(0, atomic_load(&storm.tally->units[storm.order[i]]))
			TH_LOG("nothing came of %s", ingredients[storm.order[i]].name);

	/* Not one child is left, nor a child's child. */
	ASSERT_EQ(-1, waitpid(-1, NULL, WNOHANG));
	ASSERT_EQ(ECHILD, errno);
	if (!lacks_policy())
		ASSERT_TRUE(lazy_set_policy(storm.policy));
	check_settled(_metadata, &self->t);
	lazy_check_leftovers(_metadata, &self->t, &before);
}

int main(int argc, char **argv)
{
	lazy_exec_target(argc, argv);
	return test_harness_run(argc, argv);
}
