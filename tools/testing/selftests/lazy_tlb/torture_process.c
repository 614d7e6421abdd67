// SPDX-License-Identifier: GPL-2.0
/*
 * Torture's ingredients that are made of processes: how they begin, end, look at
 * each other, and who else holds on to their mms.
 */
#include "torture.h"
#include "race.h"

#include <dirent.h>
#include <linux/io_uring.h>
#include <linux/sched.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>

#ifndef SYS_clone3
#define SYS_clone3	435
#endif
#ifndef SYS_io_uring_setup
#define SYS_io_uring_setup	425
#endif

/* ---- processes ------------------------------------------------------- */

/* Where the parent ends so does the child: a given up test leaves nothing. */
pid_t spawn(void)
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

int reap(pid_t pid)
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

void check_killed(int status)
{
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
		fail("ended with %#x, not killed", status);
	count(KILLS, 1);
}

void reap_killed(pid_t pid)
{
	check_killed(reap(pid));
}

/* Tell a process that waits in await(), or be told. */
void tell(int fd)
{
	if (!lazy_write(fd, "x", 1))
		fail("write: %s", strerror(errno));
}

/* False if the other side is gone. */
bool await(int fd)
{
	char byte;
	ssize_t n;

	do {
		n = read(fd, &byte, 1);
	} while (n < 0 && errno == EINTR);
	return n == 1;
}

void make_pipe(int fds[2])
{
	if (pipe2(fds, O_CLOEXEC))
		fail("pipe: %s", strerror(errno));
}

static bool one_of(unsigned int *seed, unsigned int nr)
{
	return lazy_random(seed) % nr == 0;
}

static struct lazy_crowd crowd;

/* Threads that are blocked on some other CPUs, or on none. */
void start_crowd(unsigned int *seed)
{
	crowd.anywhere = true;
	lazy_crowd_start(&crowd, &storm.cpus, lazy_random(seed) % storm.cpus.nr);
}

static char *map_area(size_t size)
{
	char *area = mmap(NULL, size, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (area == MAP_FAILED)
		fail("mmap: %s", strerror(errno));
	return area;
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
void big_process(unsigned int *seed)
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

/* To nowhere goes what the kernel has to say, which it finds out late. */
static bool fork_fails(unsigned long flags)
{
	struct clone_args args = {
		.flags = flags | CLONE_PIDFD,
		.pidfd = 1,
		.exit_signal = SIGCHLD,
	};

	return syscall(SYS_clone3, &args, sizeof(args)) == -1 && errno == EFAULT;
}

static const char *lacks_clone3(void)
{
	return fork_fails(0) ? NULL : "no clone3(2)";
}

/* An mm ends that nobody has ever run with, or is given back. */
static bool unit_fork_fails(unsigned int *seed)
{
	go_somewhere(seed);
	if (!fork_fails(one_of(seed, 4) ? CLONE_VM : 0))
		fail("it did not: %s", strerror(errno));
	count(FAILED_FORKS, 1);
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
	char path[64];
	pid_t pid;
	int fd;

	/* One's own can always be opened. */
	pid = fork();
	while (!pid)
		pause();
	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (pid > 0) {
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
	}
	if (fd < 0)
		return "/proc/PID/mem of a child cannot be opened";
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

/* Others look at a process while it takes another mm and ends. */
static bool unit_watch(unsigned int *seed)
{
	int code = 3 + lazy_random(seed) % 100, status, fd;
	char path[64], text[256];
	pid_t pid, ended;

	go_somewhere(seed);
	pid = spawn();
	if (!pid)
		lazy_exec_self(code);
	snprintf(path, sizeof(path), "/proc/%d/sched", pid);
	do {
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd >= 0) {
			while (read(fd, text, sizeof(text)) > 0)
				count(LOOKS, 1);
			close(fd);
		}
		ended = waitpid(pid, &status, WNOHANG);
	} while (!ended);
	if (ended != pid || !WIFEXITED(status) || WEXITSTATUS(status) != code)
		fail("ended with %#x", status);
	count(EXITS, 1);
	count(EXECS, 1);
	return true;
}

/* The kernel clears it when the first thread of a process ends. */
static atomic_int first_thread;

/* A thread that is the last to use its mm. */
static void *outlive(void *cpu)
{
	lazy_pin(0, (intptr_t)cpu);
	while (atomic_load(&first_thread))
		;
	/* Not exit_group(2), which would wake the other. */
	syscall(SYS_exit, 0);
	return NULL;
}

/*
 * Others say where a thread may run, without a need to move it. Meanwhile it ends, and
 * then another thread does, on a CPU that goes on with another process.
 */
static bool unit_affinity(unsigned int *seed)
{
	int first = lazy_random(seed) % storm.cpus.nr, us = lazy_random(seed) % 3000, status;
	int cpu[3], i;
	pid_t pid, next, ended;
	pthread_t thread;
	cpu_set_t set;
	double end;

	for (i = 0; i < 3; i++)
		cpu[i] = storm.cpus.cpu[(first + i) % storm.cpus.nr];
	lazy_pin(0, cpu[1]);
	next = spawn();
	if (!next)
		for (;;)
			;
	lazy_pin(0, cpu[0]);
	pid = spawn();
	if (!pid) {
		atomic_store(&first_thread, 1);
		syscall(SYS_set_tid_address, &first_thread);
		if (pthread_create(&thread, NULL, outlive, (void *)(intptr_t)cpu[1]))
			fail("pthread_create failed");
		/* Who has the lock of the runqueue does not keep it from ending. */
		end = lazy_now() + us / 1e6;
		while (lazy_now() < end)
			;
		syscall(SYS_exit, 0);
	}
	lazy_pin(0, cpu[2]);
	do {
		CPU_ZERO(&set);
		CPU_SET(cpu[0], &set);
		CPU_SET(storm.cpus.cpu[lazy_random(seed) % storm.cpus.nr], &set);
		if (sched_setaffinity(pid, sizeof(set), &set))
			fail("sched_setaffinity: %s", strerror(errno));
		ended = waitpid(pid, &status, WNOHANG);
	} while (!ended);
	if (ended != pid || status)
		fail("ended with %#x", status);
	kill(next, SIGKILL);
	reap_killed(next);
	count(EXITS, 1);
	count(THREADS, 1);
	return true;
}

/* Page tables change on a CPU whose task has another mm. */
static bool unit_poke(unsigned int *seed)
{
	size_t page = sysconf(_SC_PAGESIZE), size = 64 * page, i;
	pthread_t mapper;
	char path[64];
	int fds[2], fd;
	char *area;
	pid_t pid;

	area = map_area(size);
	for (i = 0; i < size; i += page)
		area[i] = 1;
	make_pipe(fds);
	go_somewhere(seed);
	pid = spawn();
	if (!pid) {
		start_crowd(seed);
		start_mapper(&mapper);
		tell(fds[1]);
		for (;;)
			go_somewhere(seed);
	}
	close(fds[1]);
	if (!await(fds[0]))
		fail("a child has failed");
	close(fds[0]);
	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		fail("%s: %s", path, strerror(errno));
	/* Each page is still the parent's as well, and is copied now. */
	for (i = 0; i < size; i += page) {
		go_somewhere(seed);
		if (pwrite(fd, "x", 1, (uintptr_t)area + i) != 1)
			fail("%s: %s", path, strerror(errno));
		count(POKES, 1);
	}
	if (kill(pid, SIGKILL))
		fail("%s", strerror(errno));
	reap_killed(pid);
	close(fd);
	munmap(area, size);
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

const struct ingredient process_ingredients[] = {
	{ .name = "exec", .unit = unit_exec },
	{ .name = "vfork", .unit = unit_vfork },
	{ .name = "fork_fails", .unit = unit_fork_fails, .lacks = lacks_clone3 },
	{ .name = "exit_unmap", .unit = unit_exit_unmap },
	{ .name = "fork_bomb", .unit = unit_fork_bomb },
	{ .name = "kill", .unit = unit_kill },
	{ .name = "mrelease", .unit = unit_mrelease, .lacks = lacks_mrelease },
	{ .name = "core", .unit = unit_core, .lacks = lacks_core },
	{ .name = "ptrace", .unit = unit_ptrace, .lacks = lacks_ptrace },
	{ .name = "proc_mem", .unit = unit_proc_mem, .lacks = lacks_proc_mem },
	{ .name = "watch", .unit = unit_watch },
	{ .name = "affinity", .unit = unit_affinity },
	{ .name = "poke", .unit = unit_poke, .lacks = lacks_proc_mem },
	{ .name = "membarrier_private", .unit = unit_membarrier, .lacks = lacks_membarrier,
	  .command = MEMBARRIER_CMD_PRIVATE_EXPEDITED },
	{ .name = "membarrier_global", .unit = unit_membarrier, .lacks = lacks_membarrier,
	  .command = MEMBARRIER_CMD_GLOBAL },
	{ .name = "membarrier_global_expedited", .unit = unit_membarrier,
	  .lacks = lacks_membarrier, .command = MEMBARRIER_CMD_GLOBAL_EXPEDITED },
	{ .name = "io_uring", .unit = unit_io_uring, .lacks = lacks_io_uring },
	{ .name = "thp", .unit = unit_advice, .lacks = lacks_advice, .command = MADV_HUGEPAGE },
	{ .name = "ksm", .unit = unit_advice, .lacks = lacks_advice, .command = MADV_MERGEABLE },
	{ .name = "userfaultfd", .unit = unit_userfaultfd, .lacks = lacks_userfaultfd },
	{ }
};
