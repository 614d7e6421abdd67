// SPDX-License-Identifier: GPL-2.0
/*
 * The first process of the guests that `bench perf` boots: has perf compare the
 * policies in all modes it has, and says what perf said. perf is in the initramfs.
 *
 * From the kernel command line: LAZY_TLB_POLICIES, separated by commas;
 * LAZY_TLB_ROUNDS, how often perf goes through all of them.
 */
#include "common.h"

#define PERF	"/perf"

int main(void)
{
	const char *rounds = getenv("LAZY_TLB_ROUNDS"), *policies = getenv("LAZY_TLB_POLICIES");
	const char *const argv[] = {
		"perf", "bench", "-f", "simple", "sched", "lazy-tlb", "-i", rounds ?: "5",
		"--compare", policies ?: "", NULL
	};
	int fd[2], status = -1;
	char line[1024];
	FILE *said;
	pid_t pid;

	guest_start();
	pid = pipe(fd) ? -1 : fork();
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
	said = pid > 0 ? fdopen(fd[0], "r") : NULL;
	while (said && fgets(line, sizeof(line), said)) {
		line[strcspn(line, "\n")] = '\0';
		guest_line("lazy-tlb-perf: %s", line);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
		guest_problem("perf ended with status %#x", status);
	guest_end();
}
