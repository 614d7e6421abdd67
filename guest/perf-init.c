// SPDX-License-Identifier: GPL-2.0
/*
 * The first process of the guests that `bench perf` boots: does what
 * lab/lazy-tlb-lab.sh does on a real machine, and reports it in the same form,
 * for there is no shell here. perf is in the initramfs.
 *
 * On the kernel command line: LAZY_TLB_ROUNDS (3), how often each mode is run;
 * LAZY_TLB_TRACE=1 instead, to trace exits on a kernel that can.
 */
#include "common.h"

#include <sys/utsname.h>
#include <time.h>

#define LAB	"lazy-tlb-lab: "
#define PERF	"/perf"

/* Each line of a file that begins with @prefix, or all, after @kind. */
static void report_file(const char *kind, const char *path, const char *prefix)
{
	FILE *file = fopen(path, "r");
	char line[1024];

	while (file && fgets(line, sizeof(line), file)) {
		line[strcspn(line, "\n")] = '\0';
		if (!strncmp(line, prefix, strlen(prefix)))
			guest_line(LAB "%s %s", kind, line);
	}
	if (file)
		fclose(file);
}

static void facts(const char *policy)
{
	char line[4096] = "";
	struct utsname name;

	if (uname(&name) ||
	    !lazy_read_file("/proc/cmdline", line, sizeof(line))) {
		guest_problem("cannot tell which kernel this is");
		return;
	}
	line[strcspn(line, "\n")] = '\0';
	guest_line(LAB "fact policy %s", policy);
	guest_line(LAB "fact started %ld", (long)time(NULL));
	guest_line(LAB "fact machine %s", name.machine);
	guest_line(LAB "fact release %s", name.release);
	guest_line(LAB "fact version %s", name.version);
	guest_line(LAB "fact cmdline %s", line);
	report_file("cpuinfo", "/proc/cpuinfo", "");
}

static void run(long round, const char *mode, const char *option)
{
	/* The last one is the mode's, if it has any. */
	const char *const argv[] = {
		"perf", "bench", "-f", "simple", "sched", "lazy-tlb", "-i", "1",
		option, NULL
	};
	int fd[2], status;
	char line[1024];
	FILE *said;
	pid_t pid;

	guest_line(LAB "run %ld %s perf bench -f simple sched lazy-tlb -i 1%s%s",
		   round, mode, option ? " " : "", option ? option : "");
	report_file("before", "/proc/vmstat", "lazy_tlb_");
	if (pipe(fd)) {
		guest_problem("pipe: %s", strerror(errno));
		return;
	}
	pid = fork();
	if (!pid) {
		dup2(fd[1], STDOUT_FILENO);
		dup2(fd[1], STDERR_FILENO);
		close(fd[0]);
		close(fd[1]);
		execv(PERF, (char *const *)argv);
		fprintf(stderr, "%s: %s\n", PERF, strerror(errno));
		_exit(127);
	}
	close(fd[1]);
	said = fdopen(fd[0], "r");
	while (said && fgets(line, sizeof(line), said)) {
		line[strcspn(line, "\n")] = '\0';
		guest_line(LAB "perf %s", line);
	}
	if (said)
		fclose(said);
	if (pid < 0 || waitpid(pid, &status, 0) != pid) {
		guest_problem("perf did not run: %s", strerror(errno));
		return;
	}
	report_file("after", "/proc/vmstat", "lazy_tlb_");
	guest_line(LAB "status %d", WIFEXITED(status) ? WEXITSTATUS(status) :
						       128 + WTERMSIG(status));
	if (status)
		guest_status = 1;
}

#define TRACING	"/sys/kernel/tracing/"

/* Each with the events of it that are of use, if not all. The buffer has room for some hundred exits. */
static const char *const events[][2] = {
	{ "syscalls/sys_enter_exit_group" },
	{ "syscalls/sys_exit_wait4" },
	{ "sched/sched_waking", "comm ~ \"sched-lazy*\"" },
	{ "sched/sched_switch", "next_comm ~ \"sched-lazy*\"" },
	{ "csd/csd_queue_cpu" },
	{ "csd/csd_function_entry" },
	{ "csd/csd_function_exit" },
	{ "lazy_tlb/lazy_tlb_final_drop" },
};

static void trace_write(const char *file, const char *text)
{
	char path[128];

	snprintf(path, sizeof(path), TRACING "%s", file);
	if (!lazy_write_file(path, text))
		guest_problem("writing %s to %s: %s", text, path, strerror(errno));
}

static void trace_event(const char *event, const char *filter)
{
	char file[64];

	if (filter) {
		snprintf(file, sizeof(file), "events/%s/filter", event);
		trace_write(file, filter);
	}
	snprintf(file, sizeof(file), "events/%s/enable", event);
	trace_write(file, "1");
}

/* Exits without trace events, as many with them, and the events. */
static void trace_exits(void)
{
	char line[1024];
	FILE *file;
	size_t i;

	run(1, "exit", "--exit");
	guest_mount("tracefs", "/sys/kernel/tracing");
	/* One for all CPUs. */
	trace_write("trace_clock", "mono");
	for (i = 0; i < sizeof(events) / sizeof(*events); i++)
		trace_event(events[i][0], events[i][1]);
	run(2, "exit", "--exit");
	trace_write("tracing_on", "0");
	file = fopen(TRACING "trace", "r");
	if (!file)
		guest_problem(TRACING "trace: %s", strerror(errno));
	while (file && fgets(line, sizeof(line), file))
		fputs(line, stdout);
	fflush(stdout);
	if (file)
		fclose(file);
}

int main(void)
{
	long rounds = lazy_env("LAZY_TLB_ROUNDS", 3);
	char policy[32];
	long round;

	guest_start();
	if (!lazy_policy(policy, sizeof(policy))) {
		guest_problem("no " LAZY_TLB_POLICY);
		guest_end();
	}
	guest_line(LAB "begin 1");
	facts(policy);
	if (lazy_env("LAZY_TLB_TRACE", 0)) {
		trace_exits();
		rounds = 0;
	}
	for (round = 1; round <= rounds; round++) {
		run(round, "threads", NULL);
		run(round, "futex", "--futex");
		run(round, "process", "--process");
		run(round, "flush", "--flush");
		run(round, "exit", "--exit");
	}
	guest_line(LAB "end");
	guest_end();
}
