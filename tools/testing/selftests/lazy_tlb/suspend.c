// SPDX-License-Identifier: GPL-2.0
/*
 * The machine sleeps while CPUs are lazy on an mm and others come and go. As far
 * as this machine can: without hardware that sleeps, the kernel's own tests go
 * down to a level and come back, see Documentation/power/basic-pm-debugging.rst.
 *
 * It disturbs the whole machine, so it is done with LAZY_TLB_SUSPEND=1 only.
 */
#include "harness.h"

#define POWER		"/sys/power/"
#define WAKEALARM	"/sys/class/rtc/rtc0/wakealarm"
#define SLEEP_S		"10"	/* longer than it takes to get there */

FIXTURE(suspend)
{
	struct lazy_test t;
	struct lazy_tally *tally;
	char mem_sleep[32], pm_test[32];	/* as they were */
};

FIXTURE_VARIANT(suspend)
{
	const char *state;	/* of POWER "state" */
	const char *pm_test;	/* how far down, "none" for all the way */
	bool deep;		/* not to idle, but to RAM */
	bool offline;		/* all CPUs but one are taken offline */
};

FIXTURE_VARIANT_ADD(suspend, idle_devices)
{
	.state = "freeze",
	.pm_test = "devices",
};

FIXTURE_VARIANT_ADD(suspend, ram_core)
{
	.state = "mem",
	.pm_test = "core",
	.deep = true,
	.offline = true,
};

FIXTURE_VARIANT_ADD(suspend, ram)
{
	.state = "mem",
	.pm_test = "none",
	.deep = true,
	.offline = true,
};

FIXTURE_VARIANT_ADD(suspend, disk_core)
{
	.state = "disk",
	.pm_test = "core",
	.offline = true,
};

static bool offers(const char *file, const char *word)
{
	char text[256];

	return lazy_read_file(file, text, sizeof(text)) && strstr(text, word);
}

/* The word in brackets is what is chosen. */
static void chosen(const char *file, char *word, size_t size)
{
	char text[256], *from, *to;

	*word = '\0';
	if (!lazy_read_file(file, text, sizeof(text)))
		return;
	from = strchr(text, '[');
	to = from ? strchr(from, ']') : NULL;
	if (to)
		snprintf(word, size, "%.*s", (int)(to - from - 1), from + 1);
}

FIXTURE_SETUP(suspend)
{
	chosen(POWER "mem_sleep", self->mem_sleep, sizeof(self->mem_sleep));
	chosen(POWER "pm_test", self->pm_test, sizeof(self->pm_test));
	lazy_setup(_metadata, &self->t, true);
	if (_metadata->exit_code)
		return;
	self->tally = mmap(NULL, sizeof(*self->tally), PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->tally);
	if (!lazy_env("LAZY_TLB_SUSPEND", false))
		SKIP(return, "LAZY_TLB_SUSPEND=0");
	if (!offers(POWER "state", variant->state))
		SKIP(return, "no %s in " POWER "state", variant->state);
	if (variant->deep && !offers(POWER "mem_sleep", "deep"))
		SKIP(return, "no suspend to RAM");
	if (strcmp(variant->pm_test, "none")) {
		if (!offers(POWER "pm_test", variant->pm_test))
			SKIP(return, "no %s in " POWER "pm_test", variant->pm_test);
	} else if (access(WAKEALARM, W_OK)) {
		SKIP(return, "nothing would wake the machine up: no " WAKEALARM);
	}
}

FIXTURE_TEARDOWN(suspend)
{
	if (*self->pm_test)
		lazy_write_file(POWER "pm_test", self->pm_test);
	if (*self->mem_sleep)
		lazy_write_file(POWER "mem_sleep", self->mem_sleep);
	if (!strcmp(variant->pm_test, "none"))
		lazy_write_file(WAKEALARM, "0");
	lazy_teardown(_metadata, &self->t);
}

struct job {
	const char *state, *pm_test;
	bool deep, offline, refcount;
};

/* Returns when the machine has woken up. */
static void sleep_machine(const struct job *job)
{
	bool real = !strcmp(job->pm_test, "none");

	if (job->deep && !lazy_write_file(POWER "mem_sleep", "deep"))
		lazy_fail(POWER "mem_sleep: %s", strerror(errno));
	if (access(POWER "pm_test", F_OK) ? !real :
	    !lazy_write_file(POWER "pm_test", job->pm_test))
		lazy_fail(POWER "pm_test: %s", strerror(errno));
	if (real) {
		lazy_write_file(WAKEALARM, "0");
		if (!lazy_write_file(WAKEALARM, "+" SLEEP_S))
			lazy_fail(WAKEALARM ": %s", strerror(errno));
	}
	if (!lazy_write_file(POWER "state", job->state))
		lazy_fail(POWER "state, %s: %s", job->state, strerror(errno));
}

static void sleep_and_end(const struct lazy_cpus *cpus, void *arg)
{
	const struct job *job = arg;
	struct lazy_self s;

	lazy_occupy(NULL, cpus, cpus->nr - 1, LAZY_ROAM, &s);
	sleep_machine(job);
	lazy_self_or_fail(&s);
	/* Who has been offline has let go, and no thread of this process was there since. */
	if (job->offline && s.lazies)
		lazy_fail("%ld CPUs are lazy on the mm that have been offline", s.lazies);
	lazy_check_counts(job->refcount, "after sleep");
}

TEST_F_TIMEOUT(suspend, lazy, LAZY_TIMEOUT)
{
	struct job job = {
		.state = variant->state,
		.pm_test = variant->pm_test,
		.deep = variant->deep,
		.offline = variant->offline,
		.refcount = self->t.refcount,
	};
	int i, status;

	for (i = 0; i < 2; i++) {
		status = lazy_run(&self->t.cpus, sleep_and_end, &job);
		lazy_assert_exited(_metadata, status, 0);
	}
}

TEST_F_TIMEOUT(suspend, churn, LAZY_TIMEOUT)
{
	struct job job = {
		.state = variant->state,
		.pm_test = variant->pm_test,
		.deep = variant->deep,
	};
	struct lazy_tally *tally = self->tally;
	int i, status;
	double limit;
	long seen;
	pid_t pid;

	for (i = 0; i < self->t.cpus.nr; i++) {
		pid = fork();
		ASSERT_LE(0, pid);
		if (!pid)
			lazy_fork_roam_exit(&self->t.cpus, self->t.seed + i, tally);
	}
	for (i = 0; i < 2; i++) {
		sleep_machine(&job);
		/* They have to go on. */
		seen = atomic_load(&tally->exits);
		limit = lazy_now() + 30;
		do {
			lazy_sleep_us(20000);
			pid = waitpid(-1, &status, WNOHANG);
			ASSERT_EQ(0, pid)
				TH_LOG("process %d ended with %#x", pid, status);
		} while (atomic_load(&tally->exits) < seen + 10 && lazy_now() < limit);
		ASSERT_LE(seen + 10, atomic_load(&tally->exits));
	}
	atomic_store(&tally->stop, true);
	for (i = 0; i < self->t.cpus.nr; i++) {
		ASSERT_LT(0, wait(&status));
		lazy_assert_exited(_metadata, status, 0);
	}
	TH_LOG("%ld exits", atomic_load(&tally->exits));
}

TEST_HARNESS_MAIN
