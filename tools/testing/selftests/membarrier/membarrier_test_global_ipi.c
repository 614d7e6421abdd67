// SPDX-License-Identifier: GPL-2.0
/*
 * Does MEMBARRIER_CMD_GLOBAL_EXPEDITED reach a CPU that came back to a
 * registered process from idle, or from another kernel thread?
 *
 * A thread spins on one CPU, so a barrier can only come to it by an interrupt.
 * From the other CPU many barriers are asked for, and the function call
 * interrupts of the first are counted.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/membarrier.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <syscall.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kselftest.h"

#define TRIALS		20
#define ROUNDS		5
#define BARRIERS	100

/* Shared with the child: it spins on @far_cpu while this is SPINNING. */
enum { STARTING, SPINNING, STOP };
static int *state;

static int near_cpu = -1, far_cpu = -1;

static int sys_membarrier(int cmd)
{
	return syscall(__NR_membarrier, cmd, 0);
}

static void run_on(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		ksft_exit_fail_msg("sched_setaffinity(%d): %s\n", cpu,
				   strerror(errno));
}

/*
 * Function call interrupts of @cpu so far, or -1 where /proc/interrupts has no
 * such line. The columns are those of the CPUs that are online.
 */
static long function_calls(int cpu)
{
	char *line = NULL, *pos;
	int column = -1, n;
	long count = -1;
	size_t size = 0;
	FILE *file;

	file = fopen("/proc/interrupts", "r");
	if (!file)
		return -1;

	if (getline(&line, &size, file) > 0) {
		for (pos = line, n = 0; (pos = strstr(pos, "CPU")); n++) {
			pos += strlen("CPU");
			if (atoi(pos) == cpu)
				column = n;
		}
	}

	while (column >= 0 && getline(&line, &size, file) > 0) {
		if (!strcasestr(line, "function call interrupts"))
			continue;
		pos = strchr(line, ':');
		if (!pos)
			continue;
		for (n = 0, pos++; n <= column; n++)
			count = strtol(pos, &pos, 10);
		break;
	}

	free(line);
	fclose(file);
	return count;
}

static void wait_for_spinning(pid_t pid, const char *name)
{
	int status;

	while (__atomic_load_n(state, __ATOMIC_ACQUIRE) != SPINNING) {
		if (waitpid(pid, &status, WNOHANG))
			ksft_exit_fail_msg("%s: child ended, status 0x%x\n",
					   name, status);
		sched_yield();
	}
}

static void spin(void)
{
	__atomic_store_n(state, SPINNING, __ATOMIC_RELEASE);
	while (__atomic_load_n(state, __ATOMIC_RELAXED) != STOP)
		;
}

/* The process leaves @far_cpu, registers, and comes back. */
static void register_elsewhere(void)
{
	run_on(far_cpu);
	run_on(near_cpu);
	if (sys_membarrier(MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED))
		exit(KSFT_FAIL);
	/* Let the kernel thread that moved this task go to sleep. */
	usleep(1000);
	run_on(far_cpu);
	spin();
}

static void *thread_exits(void *arg)
{
	return NULL;
}

static void *thread_spins(void *arg)
{
	spin();
	return NULL;
}

static void start_on(int cpu, pthread_t *thread, void *(*function)(void *))
{
	pthread_attr_t attr;
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (pthread_attr_init(&attr) ||
	    pthread_attr_setaffinity_np(&attr, sizeof(set), &set) ||
	    pthread_create(thread, &attr, function, NULL))
		exit(KSFT_FAIL);
	pthread_attr_destroy(&attr);
}

/* A thread exits on @far_cpu, and the next of its process runs there. */
static void exit_before(void)
{
	pthread_t thread;

	run_on(near_cpu);
	if (sys_membarrier(MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED))
		exit(KSFT_FAIL);
	start_on(far_cpu, &thread, thread_exits);
	pthread_join(thread, NULL);
	/* A thread is joined before it has exited altogether. */
	usleep(1000);
	start_on(far_cpu, &thread, thread_spins);
	pthread_join(thread, NULL);
}

/*
 * Not to interrupt the CPU is right while a kernel thread runs there, so ask
 * again a little later. Two barriers may share one interrupt.
 */
static bool far_cpu_is_reached(void)
{
	int round, i;
	long before;

	for (round = 0; round < ROUNDS; round++) {
		if (round)
			usleep(10000);
		before = function_calls(far_cpu);
		for (i = 0; i < BARRIERS; i++)
			if (sys_membarrier(MEMBARRIER_CMD_GLOBAL_EXPEDITED))
				ksft_exit_fail_msg("membarrier: %s\n",
						   strerror(errno));
		if (function_calls(far_cpu) - before >= BARRIERS / 2)
			return true;
	}
	return false;
}

static void test_reached(const char *name, void (*scenario)(void))
{
	int trial, status, missed = 0;
	pid_t pid;

	for (trial = 0; trial < TRIALS; trial++) {
		*state = STARTING;
		pid = fork();
		if (pid < 0)
			ksft_exit_fail_msg("fork: %s\n", strerror(errno));
		if (!pid) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			scenario();
			exit(KSFT_PASS);
		}

		wait_for_spinning(pid, name);
		missed += !far_cpu_is_reached();
		__atomic_store_n(state, STOP, __ATOMIC_RELEASE);

		if (waitpid(pid, &status, 0) != pid || status)
			ksft_exit_fail_msg("%s: status of child 0x%x\n", name,
					   status);
	}

	if (missed)
		ksft_print_msg("%s: skipped %d times of %d\n", name, missed,
			       TRIALS);
	ksft_test_result(!missed, "%s\n", name);
}

int main(void)
{
	cpu_set_t set;
	int cpu;

	ksft_print_header();

	if (sys_membarrier(MEMBARRIER_CMD_QUERY) < 0 ||
	    !(sys_membarrier(MEMBARRIER_CMD_QUERY) &
	      MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED))
		ksft_exit_skip("no MEMBARRIER_CMD_GLOBAL_EXPEDITED\n");
	if (sched_getaffinity(0, sizeof(set), &set))
		ksft_exit_fail_msg("sched_getaffinity: %s\n", strerror(errno));
	for (cpu = 0; cpu < CPU_SETSIZE && far_cpu < 0; cpu++) {
		if (!CPU_ISSET(cpu, &set))
			continue;
		if (near_cpu < 0)
			near_cpu = cpu;
		else
			far_cpu = cpu;
	}
	if (far_cpu < 0)
		ksft_exit_skip("two CPUs are needed\n");
	if (function_calls(far_cpu) < 0)
		ksft_exit_skip("function call interrupts are not counted\n");

	state = mmap(NULL, sizeof(*state), PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (state == MAP_FAILED)
		ksft_exit_fail_msg("mmap: %s\n", strerror(errno));

	ksft_set_plan(2);
	run_on(near_cpu);
	test_reached("registered while away from the CPU", register_elsewhere);
	test_reached("a thread exited on the CPU before", exit_before);
	ksft_finished();
}
