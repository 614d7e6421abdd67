// SPDX-License-Identifier: GPL-2.0
/*
 * `test`: runs every program in /tests, one after the other, and reports them
 * the way the kselftest runner does, as KTAP with each program's own results
 * nested.
 *
 * LAZY_TLB_TEST_TIMEOUT, seconds for one program (it gets more where
 * LAZY_TLB_SECONDS asks it to run for long); LAZY_TLB_ONLY, the only program to
 * run, or one test of it, as in churn:fork_exit; LAZY_TLB_KEXEC=1 to go on to the
 * kernel and the initramfs in /kexec in the end. Programs read their environment
 * themselves: LAZY_TLB_SEED and LAZY_TLB_SECONDS above all.
 */
#include "init.h"

#include <dirent.h>
#include <poll.h>
#include <signal.h>

#define TESTS	"/tests"
#define KEXEC	"/kexec/"
#define MAX_ARGS 16

/* Exit statuses, see kselftest.h. */
#define EXIT_SKIP	4

/* One program's output, as far as it was read. */
struct output {
	const char *name;
	char line[900];
	size_t len;
	bool nested;	/* it speaks TAP */
	int planned;
	int results;
	int skipped;
};

static void end_line(struct output *out)
{
	char *line = out->line;
	int planned;

	line[out->len] = '\0';
	out->len = 0;
	if (!out->nested &&
	    (!strncmp(line, "TAP version ", 12) || !strncmp(line, "KTAP version ", 13))) {
		out->nested = true;
		guest_line("    KTAP version 1");
		/* Lets a parser find this test's end when results are missing. */
		guest_line("    # Subtest: selftests: lazy_tlb: %s", out->name);
		return;
	}
	if (!out->nested) {
		guest_line("# %s", line);
		return;
	}
	if (sscanf(line, "1..%d", &planned) == 1) {
		out->planned = planned;
	} else if (!strncmp(line, "ok ", 3) || !strncmp(line, "not ok ", 7)) {
		out->results++;
		out->skipped += !!strstr(line, " # SKIP");
	} else if (*line != '#') {
		guest_line("    # %s", line);
		return;
	}
	guest_line("    %s", line);
}

/* Returns false at the end of the output. */
static bool read_output(struct output *out, int fd)
{
	char buf[4096];
	ssize_t n, i;

	n = read(fd, buf, sizeof(buf));
	if (n < 0)
		return errno == EINTR;
	for (i = 0; i < n; i++) {
		if (buf[i] == '\n' || out->len == sizeof(out->line) - 1)
			end_line(out);
		if (buf[i] != '\n' && buf[i] != '\r')
			out->line[out->len++] = buf[i];
	}
	return n > 0;
}

/* What follows a blank in the name of a program are its arguments. */
static pid_t start(const char *path, const char *test, int fd, const cpu_set_t *cpus)
{
	char *argv[MAX_ARGS + 3] = { NULL };
	pid_t pid = fork();
	char *words;
	int n;

	if (pid)
		return pid;
	setsid();
	sched_setaffinity(0, sizeof(*cpus), cpus);
	dup2(fd, STDOUT_FILENO);
	dup2(fd, STDERR_FILENO);
	words = strdup(path);
	argv[0] = words ? strtok(words, " ") : NULL;
	for (n = 1; words && n < MAX_ARGS; n++) {
		argv[n] = strtok(NULL, " ");
		if (!argv[n])
			break;
	}
	if (test) {
		argv[n++] = "-t";
		argv[n] = (char *)test;
	}
	execv(path, argv);
	lazy_fail("cannot run %s: %s", path, strerror(errno));
}

/* Runs one program, or one test of it; false when it has to count as failed. */
static bool run_one(int number, const char *name, const char *test, long timeout,
		    const cpu_set_t *cpus)
{
	struct output out = { .name = name };
	struct pollfd fds[2] = { { .events = POLLIN }, { .events = POLLIN } };
	double end = lazy_now() + timeout;
	bool ended = false, ok = false;
	char path[PATH_MAX], why[64] = "";
	int pipe_fd[2], status = 0;
	double left;
	pid_t pid;

	snprintf(path, sizeof(path), TESTS "/%s", name);
	if (pipe2(pipe_fd, O_CLOEXEC) || fcntl(pipe_fd[0], F_SETFL, O_NONBLOCK)) {
		guest_line("not ok %d selftests: lazy_tlb: %s # pipe: %s", number, name,
			   strerror(errno));
		return false;
	}
	pid = start(path, test, pipe_fd[1], cpus);
	close(pipe_fd[1]);
	fds[0].fd = pipe_fd[0];
	fds[1].fd = pid < 0 ? -1 : (int)syscall(SYS_pidfd_open, pid, 0);
	if (fds[1].fd >= 0) {
		/* No polling by the clock: it would disturb the CPUs' laziness. */
		while (!ended) {
			left = end - lazy_now();
			if (left <= 0)
				break;
			if (poll(fds, 2, left * 1000 + 1) <= 0)
				continue;
			if (fds[0].revents && !read_output(&out, fds[0].fd) && errno != EAGAIN)
				fds[0].fd = -1;
			ended = fds[1].revents;
		}
		close(fds[1].fd);
	}

	/* Whatever the program started and left goes with it. */
	if (!ended)
		kill(-1, SIGKILL);
	if (pid > 0)
		waitpid(pid, &status, 0);
	kill(-1, SIGKILL);
	while (wait(NULL) > 0 || errno == EINTR)
		;
	while (read_output(&out, pipe_fd[0]))
		;
	close(pipe_fd[0]);
	if (out.len)
		end_line(&out);

	if (pid < 0)
		snprintf(why, sizeof(why), " # cannot start");
	else if (!ended)
		snprintf(why, sizeof(why), " # TIMEOUT %ld seconds", timeout);
	else if (!WIFEXITED(status))
		snprintf(why, sizeof(why), " # signal=%d", WTERMSIG(status));
	else if (WEXITSTATUS(status) && WEXITSTATUS(status) != EXIT_SKIP)
		snprintf(why, sizeof(why), " # exit=%d", WEXITSTATUS(status));
	else if (out.results != out.planned)
		snprintf(why, sizeof(why), " # %d results of %d", out.results, out.planned);
	else
		ok = true;
	/* A program that skipped all it has passed nothing. */
	if (ok && (WEXITSTATUS(status) == EXIT_SKIP || (out.planned && out.skipped == out.planned)))
		snprintf(why, sizeof(why), " # SKIP");
	guest_line("%sok %d selftests: lazy_tlb: %s%s", ok ? "" : "not ", number, name, why);
	return ok;
}

static int is_program(const struct dirent *entry)
{
	char path[PATH_MAX];
	struct stat st;

	snprintf(path, sizeof(path), TESTS "/%s", entry->d_name);
	return !stat(path, &st) && S_ISREG(st.st_mode) && !access(path, X_OK);
}

/* What an mm is made of, page tables in pages or objects; -1 where the kernel does not say. */
struct stock {
	long mms;
	long page_tables;
	long memory;	/* what is available of all there is, in KiB */
};

/* Objects in use of the slab caches that page tables come from: powerpc has such, and some PGDs. */
static long page_table_objects(void)
{
	DIR *dir = opendir("/sys/kernel/slab");
	long objects, sum = 0;
	struct dirent *entry;

	while (dir && (entry = readdir(dir))) {
		if (strncmp(entry->d_name, "pgtable-", 8) && strncmp(entry->d_name, "pgd", 3))
			continue;
		lazy_slab_shrink(entry->d_name);
		objects = lazy_slab_objects(entry->d_name);
		if (objects > 0)
			sum += objects;
	}
	if (dir)
		closedir(dir);
	return sum;
}

static void take_stock(struct stock *stock)
{
	struct lazy_leftovers left;
	char buf[4096];
	long tables;
	int i;

	*stock = (struct stock){ .mms = -1, .page_tables = -1, .memory = -1 };
	/* What was freed a moment ago may wait for a worker or a grace period still. */
	for (i = 0; i < 10; i++) {
		lazy_leftovers(&left);
		if (left.exact && (!i || left.objects[0] < stock->mms))
			stock->mms = left.objects[0];
		if (left.tables < 0)
			break;
		tables = left.tables + page_table_objects();
		if (!i || tables < stock->page_tables)
			stock->page_tables = tables;
		lazy_sleep_us(100000);
	}
	if (lazy_read_file("/proc/meminfo", buf, sizeof(buf)))
		lazy_field(buf, "MemAvailable:", &stock->memory);
}

#define KSM		"/sys/kernel/mm/ksm/"
#define KHUGEPAGED	"/sys/kernel/mm/transparent_hugepage/khugepaged/"

/* Where the kernel has them, they look at the mms that ask for it. */
static void start_scanners(void)
{
	lazy_write_file(KSM "run", "1");
	lazy_write_file(KHUGEPAGED "scan_sleep_millisecs", "100");
}

static void report_scans(const char *key, const char *path)
{
	char scans[32];

	if (lazy_read_file(path, scans, sizeof(scans)))
		guest_line("lazy-tlb-guest: %s=%ld", key, strtol(scans, NULL, 10));
}

/* How many mms have ended since boot, and what is left of them. */
static void report_stock(const struct stock *before)
{
	struct stock after;
	long drops;

	take_stock(&after);
	if (lazy_vmstat("lazy_tlb_final_drops", &drops))
		guest_line("lazy-tlb-guest: final_drops=%ld", drops);
	guest_line("lazy-tlb-guest: mms=%ld..%ld", before->mms, after.mms);
	guest_line("lazy-tlb-guest: page_tables=%ld..%ld", before->page_tables,
		   after.page_tables);
	guest_line("lazy-tlb-guest: memory=%ld..%ld", before->memory, after.memory);
}

/* Another kernel is ready: it is to start with the same words, but for its tests. */
static bool load_kernel(void)
{
	int kernel = open(KEXEC "kernel", O_RDONLY | O_CLOEXEC);
	int initramfs = open(KEXEC "initramfs", O_RDONLY | O_CLOEXEC);
	char words[2048];
	size_t len;

	if (kernel < 0 || initramfs < 0 ||
	    !lazy_read_file("/proc/cmdline", words, sizeof(words) - 32)) {
		guest_problem("kexec: " KEXEC "kernel or " KEXEC "initramfs or the command line is missing");
		return false;
	}
	len = strcspn(words, "\n");
	strcpy(words + len, " kunit.enable=0");
	if (syscall(SYS_kexec_file_load, kernel, initramfs, strlen(words) + 1, words, 0UL)) {
		guest_problem("kexec_file_load: %s", strerror(errno));
		return false;
	}
	return true;
}

void tests(void)
{
	long timeout = lazy_env("LAZY_TLB_TEST_TIMEOUT", 300) +
		       2 * lazy_env("LAZY_TLB_SECONDS", 0);
	char *only = getenv("LAZY_TLB_ONLY");
	char *test = only ? strchr(only, ':') : NULL;
	struct dirent **programs;
	struct lazy_cpus home;
	struct stock before;
	cpu_set_t cpus;
	int i, nr;

	if (test)
		*test++ = '\0';
	/* Tests end processes by unmapping all of them: no news, and it may part a line of ours. */
	lazy_write_file("/proc/sys/debug/exception-trace", "0");
	nr = scandir(TESTS, &programs, is_program, alphasort);
	if (nr <= 0) {
		guest_problem("no programs in " TESTS);
		nr = 0;
	}
	/* This process stays where tests expect other user tasks. */
	sched_getaffinity(0, sizeof(cpus), &cpus);
	if (lazy_cpus_get(&home))
		lazy_pin(0, home.cpu[0]);

	start_scanners();
	take_stock(&before);
	guest_line("KTAP version 1");
	guest_line("1..%d", nr);
	for (i = 0; i < nr; i++) {
		if (only && strcmp(programs[i]->d_name, only))
			guest_line("ok %d selftests: lazy_tlb: %s # SKIP not asked for",
				   i + 1, programs[i]->d_name);
		else if (!run_one(i + 1, programs[i]->d_name, test, timeout, &cpus))
			guest_status = 1;
	}
	report_stock(&before);
	report_scans("ksmd", KSM "full_scans");
	report_scans("khugepaged", KHUGEPAGED "full_scans");
	if (!guest_status && lazy_env("LAZY_TLB_KEXEC", 0) && load_kernel()) {
		reboot(RB_KEXEC);
		guest_problem("kexec: %s", strerror(errno));
	}
}
