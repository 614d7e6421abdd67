// SPDX-License-Identifier: GPL-2.0
/*
 * Programs of system calls around the lifetime of mms, made from a seed. A
 * program is a list of steps, each a line: which task, what, and a number.
 *
 *	0 thread 1
 *	1 map 2
 *
 * Task 0 begins. Each other one begins after the step that makes it; it does its
 * own steps in order, beside the others, and ends. What cannot be done is passed
 * over, so that any step may be left out.
 *
 *	fuzz print WHAT		write it down
 *	fuzz run SECONDS WHAT	WHAT: a file, again and again, or a seed, and the next ones
 *
 * Without arguments it is a test in a guest: the files in /fuzz, for
 * LAZY_TLB_FUZZ_EACH seconds each, then LAZY_TLB_SEED for LAZY_TLB_FUZZ seconds.
 * It ends with the first program that leaves a task behind.
 */
#include "../tools/testing/selftests/lazy_tlb/lazy_tlb.h"

#include <dirent.h>
#include <linux/io_uring.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <termios.h>

#define CORPUS		"/fuzz"
#define CGROUP		"/tmp/fuzz"
#define CORE_PATTERN	"/proc/sys/kernel/core_pattern"

#define NR_TASKS	8
#define NR_AREAS	2
#define MAX_STEPS	64
#define STACK_SIZE	65536

/* Seconds until a program is ended, or until it is if no task goes on. */
#define LIMIT		2.0
#define QUIET		0.1
/* Seconds that tasks have to end when they are killed. */
#define PATIENCE	60.0
/* How long a task waits for another one. */
#define WAIT_MS		5

/* What tasks inherit: the program, and a pipe for each of them. */
#define SHARED_FD	100
#define PIPE_FD(task)	(SHARED_FD + 1 + 2 * (task))

struct step {
	int task;
	int op;
	int n;
};

static struct shared {
	int nr;
	struct step steps[MAX_STEPS];
	struct lazy_cpus cpus;
	/* Of the program that runs. */
	atomic_bool made[NR_TASKS];
	atomic_int pid[NR_TASKS];
	atomic_int at[NR_TASKS];	/* step */
	atomic_uint word[NR_TASKS];	/* futex */
	/* Of all so far: how often which op was done. */
	atomic_long done[64];
} *shared;

/* These are an mm's, not a task's. */
static char *area[NR_AREAS];
static char stacks[NR_TASKS][STACK_SIZE] __attribute__((aligned(64)));
static uint32_t rseqs[NR_TASKS][8] __attribute__((aligned(32)));

/* ---- steps -------------------------------------------------------------- */

struct call {
	int me;		/* task */
	int n;		/* of the step */
	long how;	/* of the op */
};

static void perform(int me, int from);

static int begin(void *arg)
{
	perform((long)arg % NR_TASKS, (long)arg / NR_TASKS);
	return 0;
}

/* Those that share the mm each have a stack in it, for each task is made once. */
static long make(const struct call *c)
{
	uint64_t args[8] = { c->how, 0, 0, 0, c->how & CLONE_PARENT ? 0 : SIGCHLD };
	long arg = (shared->at[c->me] + 1) * NR_TASKS + c->n, pid;

	if (atomic_exchange(&shared->made[c->n], true))
		return -1;
	if (c->how & CLONE_VM)
		return clone(begin, stacks[c->n] + STACK_SIZE, c->how | SIGCHLD, (void *)arg);
	pid = syscall(SYS_clone3, args, sizeof(args));
	if (!pid)
		begin((void *)arg);
	return pid;
}

static long exec(const struct call *c)
{
	char task[16];
	char *const argv[] = { "fuzz", "--task", task, NULL };

	snprintf(task, sizeof(task), "%d", c->me);
	return execv("/proc/self/exe", argv);
}

/* One that sleeps, ends, or asks for something about itself. */
enum alone { EXIT, LEAVE, VANISH, TRACEME, REAP, YIELD, NAP, GO, MEMBARRIER, RSEQ, FLIP, PONG, TAKE };

static long alone(const struct call *c)
{
	/* As the kernel has it: of two registers. */
	const long timeout[2] = { 0, WAIT_MS * 1000000 };
	struct pollfd fd = { .fd = PIPE_FD(c->me), .events = POLLIN };
	unsigned long here = (unsigned long)&fd;
	char byte;

	switch ((enum alone)c->how) {
	case EXIT:
		return syscall(SYS_exit_group, 0);
	case LEAVE:
		return syscall(SYS_exit, 0);
	case VANISH:
		/* There is no code to return to, either. */
		return syscall(SYS_munmap, 0UL, here - here % sysconf(_SC_PAGESIZE));
	case TRACEME:
		return ptrace(PTRACE_TRACEME, 0, NULL, NULL);
	case REAP:
		return waitpid(-1, NULL, WNOHANG | __WALL);
	case YIELD:
		return sched_yield();
	case NAP:
		lazy_sleep_us(c->n * 100);
		return 0;
	case GO:
		return lazy_pin(0, shared->cpus.cpu[c->n % shared->cpus.nr]) - 1;
	case MEMBARRIER:
		/* The commands are bits, but for the query. */
		return syscall(SYS_membarrier, c->n ? 1 << (c->n - 1) : 0, 0, 0);
	case RSEQ:
		return syscall(SYS_rseq, rseqs[c->me], sizeof(*rseqs), c->n, 0x53053053);
	case FLIP:
		return lazy_set_policy(lazy_policies[c->n]) - 1;
	case PONG:
		return poll(&fd, 1, WAIT_MS) == 1 ? read(fd.fd, &byte, 1) : -1;
	case TAKE:
		return syscall(SYS_futex, &shared->word[c->me], FUTEX_WAIT, 0, timeout, NULL, 0);
	}
	return -1;
}

static long send_signal(const struct call *c)
{
	return shared->pid[c->n] ? kill(shared->pid[c->n], c->how) : -1;
}

static long trace(const struct call *c)
{
	long options = c->how == PTRACE_SEIZE ? PTRACE_O_EXITKILL | PTRACE_O_TRACEEXIT : 0;
	int i, pid = shared->pid[c->n];

	/* Two that stop at their exits until the other one goes on could not be killed. */
	if (c->how == PTRACE_SEIZE && pid < syscall(SYS_gettid))
		return -1;
	if (!pid || ptrace(c->how, pid, NULL, (void *)options))
		return -1;
	for (i = 0; c->how != PTRACE_DETACH && i < WAIT_MS; i++) {
		if (waitpid(pid, NULL, WNOHANG | __WALL))
			break;
		lazy_sleep_us(1000);
	}
	return 0;
}

static long schedule(const struct call *c)
{
	const struct sched_param param = { c->how == SCHED_FIFO };

	return shared->pid[c->n] ? sched_setscheduler(shared->pid[c->n], c->how, &param) : -1;
}

/* Reach of one page of page tables. */
static size_t span(void)
{
	size_t page = sysconf(_SC_PAGESIZE);

	return page / 8 * page;
}

/* A task about another one, which need not be there. */
enum other { MRELEASE, PEEK, MEM, MOVE, PING, HAND, COLD, PAGEOUT };

static long other(const struct call *c)
{
	int pid = shared->pid[c->n], fd = pid ? syscall(SYS_pidfd_open, pid, 0) : -1;
	struct iovec there = { area, sizeof(area) }, here, range = { area[0], span() };
	char bytes[sizeof(area)], path[32];
	long ret = -1;

	here = (struct iovec){ bytes, sizeof(bytes) };
	if (fd < 0)
		return -1;
	switch ((enum other)c->how) {
	case MRELEASE:
		if (!syscall(SYS_pidfd_send_signal, fd, SIGKILL, NULL, 0))
			ret = syscall(SYS_process_mrelease, fd, 0);
		break;
	case PEEK:
		ret = process_vm_readv(pid, &here, 1, &there, 1, 0);
		break;
	case MEM:
		/* It stays open, and holds on to the mm. */
		snprintf(path, sizeof(path), "/proc/%d/mem", pid);
		ret = open(path, O_RDONLY);
		break;
	case MOVE:
		ret = lazy_pin(pid, sched_getcpu()) - 1;
		break;
	case PING:
		ret = write(PIPE_FD(c->n) + 1, "x", 1);
		break;
	case HAND:
		shared->word[c->n]++;
		ret = syscall(SYS_futex, &shared->word[c->n], FUTEX_WAKE, 1, NULL, NULL, 0);
		break;
	case COLD:
	case PAGEOUT:
		ret = syscall(SYS_process_madvise, fd, &range, 1UL,
			      c->how == COLD ? MADV_COLD : MADV_PAGEOUT, 0U);
		break;
	}
	close(fd);
	return ret;
}

static size_t area_size(void)
{
	return 2 * span() + 64 * sysconf(_SC_PAGESIZE);
}

static long map(const struct call *c)
{
	char *at = mmap(NULL, area_size(), PROT_READ | PROT_WRITE,
			MAP_ANONYMOUS | MAP_NORESERVE | c->how, -1, 0);

	if (at == MAP_FAILED)
		return -1;
	at[0] = at[span()] = at[2 * span()] = 1;
	area[c->n] = at;
	return 0;
}

/* Who touches it waits in vain. */
static long uffd(char *at)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register registered = {
		.range = { (uintptr_t)at, area_size() },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC);

	madvise(at, area_size(), MADV_DONTNEED);
	return fd < 0 || ioctl(fd, UFFDIO_API, &api) ? -1 : ioctl(fd, UFFDIO_REGISTER, &registered);
}

/* Less than 0, for the others are advices of madvise(2). */
enum change { TOUCH = -7, UNMAP, UNMAP_PART, REMAP, READ_ONLY, WRITABLE, UFFD };

static long change(const struct call *c)
{
	size_t page = sysconf(_SC_PAGESIZE), i;
	char *at = area[c->n];

	if (!at)
		return -1;
	switch (c->how) {
	case TOUCH:
		for (i = 0; i < 16; i++)
			at[i * page] = at[2 * span() + i * page] = 1;
		return 0;
	case UNMAP:
		area[c->n] = NULL;
		return munmap(at, area_size());
	case UNMAP_PART:
		return munmap(at + span() / 2, span());
	case REMAP:
		return mremap(at, span(), span() / 2, MREMAP_MAYMOVE) == MAP_FAILED ? -1 : 0;
	case READ_ONLY:
	case WRITABLE:
		return mprotect(at, span(), PROT_READ | (c->how == WRITABLE ? PROT_WRITE : 0));
	case UFFD:
		return uffd(at);
	}
	return madvise(at, area_size(), c->how);
}

/* A request for a worker, and one that is not done before the task ends. */
static long uring(const struct call *c)
{
	struct io_uring_params params = { .flags = c->n ? IORING_SETUP_SQPOLL : 0 };
	int fd = syscall(SYS_io_uring_setup, 4, &params), fds[2];
	struct io_uring_sqe *sqe;
	static char byte;
	char *ring;

	if (fd < 0 || pipe(fds))
		return -1;
	sqe = mmap(NULL, 4 * sizeof(*sqe), PROT_READ | PROT_WRITE, MAP_SHARED, fd,
		   IORING_OFF_SQES);
	ring = mmap(NULL, params.sq_off.array + 4 * sizeof(uint32_t), PROT_READ | PROT_WRITE,
		    MAP_SHARED, fd, IORING_OFF_SQ_RING);
	if (sqe == MAP_FAILED || ring == MAP_FAILED)
		return -1;
	sqe[0] = (struct io_uring_sqe){ .opcode = IORING_OP_NOP, .flags = IOSQE_ASYNC };
	sqe[1] = (struct io_uring_sqe){
		.opcode = IORING_OP_READ, .flags = IOSQE_ASYNC, .fd = fds[0],
		.addr = (uintptr_t)&byte, .len = 1,
	};
	((uint32_t *)(ring + params.sq_off.array))[1] = 1;
	atomic_store((atomic_uint *)(ring + params.sq_off.tail), 2);
	return syscall(SYS_io_uring_enter, fd, 2, 0, c->n ? IORING_ENTER_SQ_WAKEUP : 0, NULL, 0UL);
}

static long cgroup(const struct call *c)
{
	char path[64];

	snprintf(path, sizeof(path), CGROUP "/%d/cgroup.%s", c->n, c->how ? "kill" : "procs");
	return lazy_write_file(path, c->how ? "1" : "0") - 1;
}

#define LIKE_THREAD	(CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND)

/* What stands in place of a limit of the number: it is of a task, or of one to be made. */
#define TASK		(-1)
#define NEW		(-2)

static const struct op {
	const char *name;
	int limit;	/* of the number, 0: there is none */
	int weight;
	long (*fn)(const struct call *c);
	long how;
} ops[] = {
	{ "fork", NEW, 4, make, 0 },
	{ "fork_files", NEW, 1, make, CLONE_FILES },
	{ "fork_parent", NEW, 1, make, CLONE_PARENT },
	{ "fork_wait", NEW, 1, make, CLONE_VFORK },
	{ "vm", NEW, 3, make, CLONE_VM },
	{ "vfork", NEW, 3, make, CLONE_VM | CLONE_VFORK },
	{ "almost_thread", NEW, 2, make, LIKE_THREAD },
	{ "thread", NEW, 6, make, LIKE_THREAD | CLONE_THREAD | CLONE_SYSVSEM },
	{ "exec", 0, 3, exec, 0 },
	{ "exit", 0, 1, alone, EXIT },
	{ "leave", 0, 1, alone, LEAVE },
	{ "vanish", 0, 1, alone, VANISH },
	{ "kill", TASK, 1, send_signal, SIGKILL },
	{ "abort", TASK, 1, send_signal, SIGABRT },
	{ "stop", TASK, 1, send_signal, SIGSTOP },
	{ "cont", TASK, 2, send_signal, SIGCONT },
	{ "mrelease", TASK, 1, other, MRELEASE },
	{ "attach", TASK, 2, trace, PTRACE_ATTACH },
	{ "seize", TASK, 1, trace, PTRACE_SEIZE },
	{ "interrupt", TASK, 1, trace, PTRACE_INTERRUPT },
	{ "detach", TASK, 2, trace, PTRACE_DETACH },
	{ "traceme", 0, 1, alone, TRACEME },
	{ "reap", 0, 2, alone, REAP },
	{ "map", NR_AREAS, 8, map, MAP_PRIVATE },
	{ "map_shared", NR_AREAS, 2, map, MAP_SHARED },
	{ "touch", NR_AREAS, 3, change, TOUCH },
	{ "unmap", NR_AREAS, 3, change, UNMAP },
	{ "unmap_part", NR_AREAS, 2, change, UNMAP_PART },
	{ "remap", NR_AREAS, 2, change, REMAP },
	{ "read_only", NR_AREAS, 1, change, READ_ONLY },
	{ "writable", NR_AREAS, 1, change, WRITABLE },
	{ "dontneed", NR_AREAS, 3, change, MADV_DONTNEED },
	{ "huge", NR_AREAS, 1, change, MADV_HUGEPAGE },
	{ "merge", NR_AREAS, 1, change, MADV_MERGEABLE },
	{ "uffd", NR_AREAS, 1, change, UFFD },
	{ "cold", TASK, 1, other, COLD },
	{ "pageout", TASK, 1, other, PAGEOUT },
	{ "peek", TASK, 1, other, PEEK },
	{ "mem", TASK, 2, other, MEM },
	{ "uring", 2, 2, uring, 0 },
	{ "membarrier", 11, 3, alone, MEMBARRIER },
	{ "rseq", 2, 1, alone, RSEQ },
	{ "go", 8, 8, alone, GO },
	{ "move", TASK, 2, other, MOVE },
	{ "normal", TASK, 1, schedule, SCHED_OTHER },
	{ "idle", TASK, 1, schedule, SCHED_IDLE },
	{ "fifo", TASK, 1, schedule, SCHED_FIFO },
	{ "cgroup", 2, 1, cgroup, false },
	{ "cgroup_kill", 2, 1, cgroup, true },
	{ "flip", LAZY_NR_POLICIES, 4, alone, FLIP },
	{ "ping", TASK, 3, other, PING },
	{ "pong", 0, 3, alone, PONG },
	{ "hand", TASK, 3, other, HAND },
	{ "take", 0, 3, alone, TAKE },
	{ "nap", 30, 6, alone, NAP },
	{ "yield", 0, 2, alone, YIELD },
};

#define NR_OPS	((int)(sizeof(ops) / sizeof(*ops)))

static void perform(int me, int from)
{
	const struct step *step;
	struct call c = { .me = me };
	int i;

	shared->pid[me] = syscall(SYS_gettid);
	for (i = from; i < shared->nr; i++) {
		step = &shared->steps[i];
		if (step->task != me)
			continue;
		shared->at[me] = i;
		c.n = step->n;
		c.how = ops[step->op].how;
		if (ops[step->op].fn(&c) >= 0)
			shared->done[step->op]++;
	}
	shared->at[me] = shared->nr;
	syscall(SYS_exit, 0);
}

/* ---- programs ------------------------------------------------------------ */

static int pick_op(unsigned int *state)
{
	int sum = 0, i;

	for (i = 0; i < NR_OPS; i++)
		sum += ops[i].weight;
	sum = lazy_random(state) % sum;
	for (i = 0; sum >= ops[i].weight; i++)
		sum -= ops[i].weight;
	return i;
}

static void generate(unsigned int seed)
{
	unsigned int state = seed * 2654435761u;
	struct step *step;
	int tasks = 1, limit, i;

	/* Or seeds that are near each other would begin alike. */
	for (i = 0; i < 8; i++)
		lazy_random(&state);
	shared->nr = 8 + lazy_random(&state) % (MAX_STEPS - 8);
	for (i = 0; i < shared->nr; i++) {
		step = &shared->steps[i];
		step->task = lazy_random(&state) % tasks;
		do {
			step->op = pick_op(&state);
			limit = ops[step->op].limit;
		} while (limit == NEW && tasks == NR_TASKS);
		if (limit == TASK)
			limit = tasks;
		step->n = limit > 0 ? lazy_random(&state) % limit : 0;
		if (limit == NEW)
			step->n = tasks++;
	}
}

static bool parse(const char *line, struct step *step)
{
	int fields, limit, op;
	char name[32], rest;

	step->n = 0;
	fields = sscanf(line, "%d %31s %d %c", &step->task, name, &step->n, &rest);
	for (op = 0; op < NR_OPS && fields > 1; op++) {
		if (strcmp(ops[op].name, name))
			continue;
		step->op = op;
		limit = ops[op].limit < 0 ? NR_TASKS : ops[op].limit;
		return fields == (limit ? 3 : 2) && step->n >= 0 && (!limit || step->n < limit) &&
		       step->task >= 0 && step->task < NR_TASKS;
	}
	return false;
}

/* From a seed, or from a file, where a line is a step, blank, or a comment. */
static bool get_program(const char *what)
{
	char line[256], *end;
	FILE *file;
	int nr = 0;

	generate(strtoul(what, &end, 10));
	if (!*end)
		return true;
	file = fopen(what, "r");
	if (!file) {
		lazy_line(STDERR_FILENO, "%s: %s", what, strerror(errno));
		return false;
	}
	shared->nr = 0;
	while (fgets(line, sizeof(line), file)) {
		nr++;
		line[strcspn(line, "\n")] = '\0';
		if (!*line || *line == '#')
			continue;
		if (shared->nr == MAX_STEPS || !parse(line, &shared->steps[shared->nr])) {
			lazy_line(STDERR_FILENO, "%s:%d: %s: %s", what, nr,
				  shared->nr == MAX_STEPS ? "too many steps" : "no step", line);
			exit(2);
		}
		shared->nr++;
	}
	fclose(file);
	return true;
}

static void print(void)
{
	const struct step *step;
	int i;

	for (i = 0; i < shared->nr; i++) {
		step = &shared->steps[i];
		printf(ops[step->op].limit ? "%d %s %d\n" : "%d %s\n", step->task,
		       ops[step->op].name, step->n);
	}
}

/* ---- running them --------------------------------------------------------- */

/* What runs is named here, by no process that would not come to it in a crash. */
static int console = STDOUT_FILENO;

static char policy[32], core_pattern[256];
static long programs, cut_short, ended, by_signal;

static void start(void)
{
	int i, fds[2];

	for (i = 0; i < NR_TASKS; i++)
		if (pipe2(fds, O_NONBLOCK | O_CLOEXEC) || dup2(fds[0], PIPE_FD(i)) < 0 ||
		    dup2(fds[1], PIPE_FD(i) + 1) < 0)
			lazy_fail("pipe: %s", strerror(errno));
	perform(0, 0);
}

/* Reaps what has ended; false if there is nothing to wait for. */
static bool some_left(void)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG | __WALL)) > 0) {
		/* Its parent is to trace it, as it has asked for? */
		if (WIFSTOPPED(status)) {
			ptrace(PTRACE_DETACH, pid, NULL, NULL);
			continue;
		}
		ended++;
		by_signal += WIFSIGNALED(status);
	}
	return !pid;
}

/* The caller is the reaper of all. False if a task is left over. */
static bool run_once(const char *name)
{
	double now = lazy_now(), end = now + LIMIT, quiet = now + QUIET;
	long before = 0, progress;
	bool killed = false;
	pid_t pid;
	int i;

	if (*policy)
		lazy_set_policy(policy);
	for (i = 0; i < NR_TASKS; i++) {
		shared->made[i] = !i;
		shared->pid[i] = shared->at[i] = shared->word[i] = 0;
	}
	lazy_line(console, "fuzz: program %s", name);
	tcdrain(console);
	programs++;
	pid = fork();
	if (!pid)
		start();
	while (pid > 0 && some_left()) {
		now = lazy_now();
		for (progress = i = 0; i < NR_TASKS; i++)
			progress += shared->at[i] + shared->made[i];
		if (progress != before)
			quiet = now + QUIET;
		before = progress;
		/* Again and again: one that was just made may not have said who it is. */
		killed |= now > end || now > quiet + QUIET;
		for (i = 0; (killed || now > quiet) && i < NR_TASKS; i++)
			if (shared->pid[i])
				kill(shared->pid[i], killed ? SIGKILL : SIGCONT);
		if (now > end + PATIENCE) {
			lazy_line(STDOUT_FILENO, "# a task of %s is left", name);
			return false;
		}
		lazy_sleep_us(1000);
	}
	cut_short += killed;
	return pid > 0;
}

static bool run(const char *what, double seconds)
{
	double end = lazy_now() + seconds;
	char name[PATH_MAX], *last;
	unsigned int seed;

	snprintf(name, sizeof(name), "%s", what);
	while (get_program(name) && run_once(name)) {
		if (lazy_now() >= end)
			return true;
		seed = strtoul(name, &last, 10);
		if (!*last)
			snprintf(name, sizeof(name), "%u", seed + 1);
	}
	return false;
}

static void set_up(void)
{
	char self[PATH_MAX], text[PATH_MAX + 16];
	ssize_t len = readlink("/proc/self/exe", self, sizeof(self) - 1);

	prctl(PR_SET_CHILD_SUBREAPER, 1);
	lazy_cpus_get(&shared->cpus);
	if (!lazy_policy(policy, sizeof(policy)))
		*policy = '\0';
	mkdir(CGROUP, 0755);
	if (!mount("cgroup2", CGROUP, "cgroup2", 0, NULL)) {
		lazy_write_file(CGROUP "/cgroup.subtree_control", "+memory");
		lazy_write_file(CGROUP "/cgroup.subtree_control", "+cpuset");
		mkdir(CGROUP "/0", 0755);
		mkdir(CGROUP "/1", 0755);
	}
	/* A kernel thread executes this program. */
	if (len > 0 && lazy_read_file(CORE_PATTERN, core_pattern, sizeof(core_pattern))) {
		snprintf(text, sizeof(text), "|%.*s --core", (int)len, self);
		lazy_write_file(CORE_PATTERN, text);
	}
}

static void take_down(void)
{
	char text[2048] = "";
	size_t len = 0;
	int i;

	if (*policy)
		lazy_set_policy(policy);
	if (*core_pattern)
		lazy_write_file(CORE_PATTERN, core_pattern);
	rmdir(CGROUP "/0");
	rmdir(CGROUP "/1");
	umount(CGROUP);
	rmdir(CGROUP);
	for (i = 0; i < NR_OPS; i++)
		len += snprintf(text + len, sizeof(text) - len, " %ld %s", shared->done[i],
				ops[i].name);
	lazy_line(STDOUT_FILENO, "# done:%s", text);
	lazy_line(STDOUT_FILENO, "# %ld programs, %ld of them cut short, %ld processes, %ld of them ended by a signal",
		  programs, cut_short, ended, by_signal);
}

static bool run_corpus(double seconds)
{
	struct dirent **files;
	int i, nr = scandir(CORPUS, &files, NULL, alphasort);
	char path[PATH_MAX];

	for (i = 0; i < nr; i++) {
		snprintf(path, sizeof(path), CORPUS "/%s", files[i]->d_name);
		if (*files[i]->d_name != '.' && !run(path, seconds))
			return false;
	}
	return true;
}

static int test(void)
{
	unsigned long seconds = lazy_env("LAZY_TLB_FUZZ", 0);
	char seed[16];
	bool ok;

	if (!getenv("LAZY_TLB_FUZZ"))
		return 4;
	snprintf(seed, sizeof(seed), "%u",
		 (unsigned int)lazy_env("LAZY_TLB_SEED", getpid() ^ time(NULL)));
	console = open("/dev/console", O_WRONLY | O_NOCTTY | O_CLOEXEC);
	lazy_line(STDOUT_FILENO, "TAP version 13\n1..1\n# LAZY_TLB_SEED=%s", seed);
	set_up();
	ok = run_corpus(lazy_env("LAZY_TLB_FUZZ_EACH", 0)) && (!seconds || run(seed, seconds));
	take_down();
	lazy_line(STDOUT_FILENO, "%sok 1 fuzz.programs", ok ? "" : "not ");
	return !ok;
}

int main(int argc, char **argv)
{
	const char *how = argc > 1 ? argv[1] : "";
	bool task = argc == 3 && !strcmp(how, "--task"), ok;
	FILE *file = task ? NULL : tmpfile();
	char buf[4096];
	long me;

	if (!strcmp(how, "--core")) {
		while (read(STDIN_FILENO, buf, sizeof(buf)) > 0)
			;
		return 0;
	}
	if (!task && (!file || ftruncate(fileno(file), sizeof(*shared)) ||
		      dup2(fileno(file), SHARED_FD) < 0))
		lazy_fail("tmpfile: %s", strerror(errno));
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED, SHARED_FD, 0);
	if (shared == MAP_FAILED)
		lazy_fail("mmap: %s", strerror(errno));
	if (task) {
		me = strtol(argv[2], NULL, 10) % NR_TASKS;
		shared->done[shared->steps[shared->at[me]].op]++;
		perform(me, shared->at[me] + 1);
	}
	if (argc == 1)
		return test();
	if (argc == 3 && !strcmp(how, "print")) {
		if (!get_program(argv[2]))
			return 2;
		print();
		return 0;
	}
	if (argc != 4 || strcmp(how, "run")) {
		fprintf(stderr, "usage: fuzz print WHAT, or fuzz run SECONDS WHAT\n");
		return 2;
	}
	set_up();
	ok = run(argv[3], strtod(argv[2], NULL));
	take_down();
	return !ok;
}
