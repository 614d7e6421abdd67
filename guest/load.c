// SPDX-License-Identifier: GPL-2.0
/*
 * `bench lines --load`. A program that people run, /load/start, in the Debian
 * system that the initramfs has, after /load/prepare if that is there. Both are
 * for sh. While it runs, the policies take turns, and an emulator's plugin
 * counts for a while in each: see lines.c.
 *
 * LAZY_TLB_WATCH is the process whose mm is looked at, LAZY_TLB_OPERATION the
 * field of its /proc/PID/io that counts operations, LAZY_TLB_WARM how many
 * milliseconds the load runs before all turns, LAZY_TLB_SETTLE before a turn is
 * counted, and LAZY_TLB_COUNT while it is. They are of the guest's clock.
 */
#include "lines.h"

#include <dirent.h>
#include <net/if.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#define PREPARE		"/load/prepare"
#define START		"/load/start"
#define LOG		"/load/log"

/* ---- the load ------------------------------------------------------------ */

static void loopback_up(void)
{
	struct ifreq lo = { .ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &lo))
		guest_problem("no loopback: %s", strerror(errno));
	close(fd);
}

static pid_t run_script(const char *path)
{
	static const char * const environment[] = {
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C", NULL
	};
	pid_t pid = fork();
	int fd;

	if (pid)
		return pid;
	setsid();
	fd = open(LOG, O_WRONLY | O_CREAT | O_APPEND, 0644);
	dup2(fd, STDOUT_FILENO);
	dup2(fd, STDERR_FILENO);
	fd = open("/dev/null", O_RDONLY);
	dup2(fd, STDIN_FILENO);
	execle("/bin/sh", "sh", path, NULL, (char **)environment);
	lazy_fail("/bin/sh: %s", strerror(errno));
}

/* The first process of that name, 0 where there is none. */
static pid_t find_process(const char *name)
{
	char path[64], own[64];
	struct dirent *entry;
	DIR *dir = opendir("/proc");
	pid_t pid, found = 0;

	while (dir && (entry = readdir(dir))) {
		pid = atoi(entry->d_name);
		if (pid <= 1 || (found && found < pid))
			continue;
		snprintf(path, sizeof(path), "/proc/%d/comm", pid);
		if (!lazy_read_file(path, own, sizeof(own)))
			continue;
		own[strcspn(own, "\n")] = '\0';
		if (!strcmp(own, name))
			found = pid;
	}
	if (dir)
		closedir(dir);
	return found;
}

/* Tasks that end while their list is gone through lead nowhere. */
static unsigned long find_mm(pid_t pid)
{
	unsigned long mm = 0;
	int tries = 100;

	while (pid && !mm && tries--)
		mm = lines_mm(pid);
	return mm;
}

/* The beginning of what it said, where one looks if it did not run. */
static void show_log(void)
{
	FILE *log = fopen(LOG, "r");
	char line[512];
	int left = 50;

	while (log && left-- && fgets(line, sizeof(line), log)) {
		line[strcspn(line, "\n")] = '\0';
		guest_line("lazy-tlb-load: %s", line);
	}
	if (log)
		fclose(log);
}

/* ---- turns ---------------------------------------------------------------- */

static void sleep_ms(const char *name, unsigned long fallback)
{
	lazy_sleep_us(lazy_env(name, fallback) * 1000);
}

static long operations(pid_t pid, const char *field)
{
	char path[64], buf[1024], key[64];
	long count = 0;

	if (!field)
		return 0;
	snprintf(path, sizeof(path), "/proc/%d/io", pid);
	snprintf(key, sizeof(key), "%s:", field);
	if (!lazy_read_file(path, buf, sizeof(buf)) || !lazy_field(buf, key, &count))
		guest_problem("no %s in %s", field, path);
	return count;
}

static bool turn(const struct lazy_cpus *cpus, const char *name)
{
	const char *field = getenv("LAZY_TLB_OPERATION");
	pid_t pid = find_process(name);
	unsigned long mm = find_mm(pid);
	long switched, done;

	if (!mm) {
		guest_problem("no process is called %s", name);
		return false;
	}
	lines_announce("switch", cpus, mm);
	done = operations(pid, field);
	switched = lines_switches();
	lines_begin();
	sleep_ms("LAZY_TLB_COUNT", 20);
	lines_end();
	switched = lines_switches() - switched;
	done = operations(pid, field) - done;
	guest_line("lazy-tlb-lines: what=trips trips=%ld switches=%ld", switched, switched);
	if (field)
		guest_line("lazy-tlb-lines: what=operations operations=%ld", done);
	if (!switched || (field && !done))
		guest_problem("%s did nothing", name);
	if (find_mm(pid) != mm) {
		guest_problem("%s has ended", name);
		return false;
	}
	return true;
}

void load(void)
{
	const struct sched_param first = { .sched_priority = 1 };
	const char *watch = getenv("LAZY_TLB_WATCH");
	char *policy[GUEST_MAX_POLICIES];
	struct lazy_cpus cpus;
	int nr, i, status = 0;

	loopback_up();
	nr = lines_start(&cpus, policy);
	if (!access(PREPARE, F_OK) &&
	    (waitpid(run_script(PREPARE), &status, 0) < 0 || status)) {
		guest_problem("%s ended with status %#x", PREPARE, status);
		show_log();
		return;
	}
	run_script(START);
	/* A turn is to be as long as it should be, however many threads there are. */
	if (sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &first))
		guest_problem("sched_setscheduler: %s", strerror(errno));
	sleep_ms("LAZY_TLB_WARM", 100);
	lines_arm();
	for (i = 0; i < nr || !i; i++) {
		if (nr)
			lines_turn(policy[i]);
		sleep_ms("LAZY_TLB_SETTLE", 5);
		if (!turn(&cpus, watch ?: ""))
			break;
	}
	/* Nobody is to be woken once CPUs are stopped. */
	kill(-1, SIGKILL);
	while (waitpid(-1, NULL, 0) > 0)
		;
	show_log();
}

/* ---- a load of our own ----------------------------------------------------- */

/*
 * The shape of schbench: workers that have done a piece of work queue up, wake
 * one thread, and sleep until that wakes them. All by futexes of one process.
 */
#define PIECE	2000

struct worker {
	atomic_uint awake;
	struct worker *next;
} __attribute__((aligned(256)));

static struct worker *_Atomic queue;
static atomic_uint queued __attribute__((aligned(256)));

static void *work(void *arg)
{
	struct worker *self = arg;
	volatile int left;

	for (;;) {
		atomic_store(&self->awake, 0);
		self->next = atomic_load(&queue);
		while (!atomic_compare_exchange_weak(&queue, &self->next, self))
			;
		atomic_fetch_add(&queued, 1);
		lazy_futex(&queued, FUTEX_WAKE, 1);
		while (!atomic_load(&self->awake))
			lazy_futex(&self->awake, FUTEX_WAIT, 0);
		for (left = PIECE; left; left--)
			;
	}
	return NULL;
}

static int hand_off(int nr)
{
	struct worker *workers = aligned_alloc(256, nr * sizeof(*workers)), *worker, *next;
	unsigned int seen;
	pthread_t thread;
	int i;

	prctl(PR_SET_NAME, "handoff");
	for (i = 0; i < nr; i++)
		if (pthread_create(&thread, NULL, work, &workers[i]))
			lazy_fail("pthread_create: %s", strerror(errno));
	for (;;) {
		seen = atomic_load(&queued);
		worker = atomic_exchange(&queue, NULL);
		if (!worker)
			lazy_futex(&queued, FUTEX_WAIT, seen);
		for (; worker; worker = next) {
			/* Once awake it may queue up again. */
			next = worker->next;
			atomic_store(&worker->awake, 1);
			lazy_futex(&worker->awake, FUTEX_WAKE, 1);
		}
	}
}

int load_work(const char *what, const char *number)
{
	if (!strcmp(what, "handoff"))
		return hand_off(atoi(number));
	fprintf(stderr, "no load is called %s\n", what);
	return 2;
}
