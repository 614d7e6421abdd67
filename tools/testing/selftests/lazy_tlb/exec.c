// SPDX-License-Identifier: GPL-2.0
/*
 * exec from a kernel thread: the kernel starts a program (here the one that
 * receives core dumps) from a worker that is lazy on somebody else's mm, so
 * that exec_mmap() has no old mm, only a borrowed one to give up.
 */
#include "harness.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#define CORE_PATTERN	"/proc/sys/kernel/core_pattern"
#define HELPER_ARG	"--core-helper"

/* The kernel cuts core_pattern at this length. */
#define PATTERN_MAX	128

FIXTURE(exec)
{
	struct lazy_test t;
	char saved[PATTERN_MAX + 1];
	char dir[32];
	bool changed;
};

FIXTURE_SETUP(exec)
{
	char self_path[PATH_MAX], pattern[PATH_MAX + 64];
	ssize_t len;

	lazy_setup(_metadata, &self->t, false);
	if (_metadata->exit_code)
		return;
	if (!lazy_read_file(CORE_PATTERN, self->saved, sizeof(self->saved)))
		SKIP(return, "no " CORE_PATTERN " (CONFIG_COREDUMP)");

	len = readlink("/proc/self/exe", self_path, sizeof(self_path) - 1);
	ASSERT_LT(0, len);
	self_path[len] = '\0';
	snprintf(self->dir, sizeof(self->dir), "/tmp/lazy_tlb.XXXXXX");
	ASSERT_NE(NULL, mkdtemp(self->dir));
	snprintf(pattern, sizeof(pattern), "|%s " HELPER_ARG " %s/%%P", self_path, self->dir);
	if (strlen(pattern) >= PATTERN_MAX || strchr(self_path, ' ')) {
		rmdir(self->dir);
		SKIP(return, "core_pattern cannot hold this program's path");
	}
	if (!lazy_write_file(CORE_PATTERN, pattern)) {
		rmdir(self->dir);
		SKIP(return, "cannot write " CORE_PATTERN ": %s", strerror(errno));
	}
	self->changed = true;
}

FIXTURE_TEARDOWN(exec)
{
	if (self->changed) {
		EXPECT_TRUE(lazy_write_file(CORE_PATTERN, self->saved));
		EXPECT_EQ(0, rmdir(self->dir));
	}
	lazy_teardown(_metadata, &self->t);
}

/* Leaves every CPU lazy on its mm, so that the worker inherits it, and dies. */
static void dump_core(const struct lazy_cpus *cpus)
{
	struct rlimit limit = { RLIM_INFINITY, RLIM_INFINITY };
	int i;

	setrlimit(RLIMIT_CORE, &limit);
	for (i = cpus->nr - 1; i >= 0; i--)
		lazy_pin(0, cpus->cpu[i]);
	abort();
}

/* Run by the kernel: says in the file named on its command line that it did. */
static int core_helper(const char *path)
{
	char buf[4096], magic[4] = "";
	bool first = true;
	int fd;
	ssize_t n;

	while ((n = read(STDIN_FILENO, buf, sizeof(buf))) > 0) {
		if (first && n >= (ssize_t)sizeof(magic))
			memcpy(magic, buf, sizeof(magic));
		first = false;
	}
	fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
	if (fd < 0)
		return 1;
	n = write(fd, magic, sizeof(magic));
	close(fd);
	return n != sizeof(magic);
}

TEST_F_TIMEOUT(exec, usermodehelper, LAZY_TIMEOUT)
{
	char path[64], magic[8];
	int i, status, waited;
	struct stat st;
	pid_t pid;

	for (i = 0; i < 30; i++) {
		ASSERT_TRUE(lazy_pin(0, self->t.cpus.cpu[0]));
		pid = fork();
		ASSERT_LE(0, pid);
		if (!pid)
			dump_core(&self->t.cpus);
		ASSERT_EQ(pid, waitpid(pid, &status, 0));
		ASSERT_TRUE(WIFSIGNALED(status));
		ASSERT_EQ(SIGABRT, WTERMSIG(status));

		/* The kernel does not wait for the helper to end. */
		snprintf(path, sizeof(path), "%s/%d", self->dir, pid);
		for (waited = 0; waited < 60000; waited++) {
			if (!stat(path, &st) && st.st_size >= 4)
				break;
			lazy_sleep_us(1000);
		}
		ASSERT_TRUE(lazy_read_file(path, magic, sizeof(magic)))
			TH_LOG("round %d: the kernel's helper did not run", i);
		EXPECT_EQ(0, unlink(path));
		ASSERT_EQ(0, memcmp(magic, "\177ELF", 4));
	}
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], HELPER_ARG))
		return core_helper(argv[2]);
	return test_harness_run(argc, argv);
}
