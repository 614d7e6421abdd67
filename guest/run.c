// SPDX-License-Identifier: GPL-2.0
/*
 * `run`: the same workload whatever the policy, reported as `lazy-tlb-run:
 * key=value` lines.
 *
 * LAZY_TLB_EXITS (multi-CPU processes to end, 1000), LAZY_TLB_REPEAT (of the
 * timed parts, 5).
 */
#include "init.h"

#include <sys/eventfd.h>

static struct lazy_cpus cpus;
static struct lazy_crowd crowd;

static void report(const char *key, double value)
{
	guest_line("lazy-tlb-run: %s=%.0f", key, value);
}

static void report_spread(const char *key, double *values, int nr)
{
	char name[64];

	report(key, guest_median(values, nr));
	snprintf(name, sizeof(name), "%s_min", key);
	report(name, values[0]);
	snprintf(name, sizeof(name), "%s_max", key);
	report(name, values[nr - 1]);
}

/* ---- lazy CPUs and the references they hold ---------------------------- */

static void measure_lazies(const struct lazy_cpus *where, void *arg)
{
	struct lazy_self *result = arg, base, s;

	lazy_self_or_fail(&base);
	lazy_occupy(&crowd, where, where->nr - 1, LAZY_BLOCK, &s);
	if (base.lazies)
		lazy_fail("%ld CPUs lazy on a new mm", base.lazies);
	result->lazies = s.lazies;
	result->mm_count = s.mm_count - base.mm_count;
}

static void lazies(void)
{
	struct lazy_self *result = guest_shared(sizeof(*result));
	int status = lazy_run(&cpus, measure_lazies, result);

	if (status) {
		guest_problem("lazy CPUs not measured, status %#x", status);
		return;
	}
	report("lazy_cpus", result->lazies);
	report("mm_count_lazy", result->mm_count);
}

/* ---- interrupts for a number of exits ----------------------------------- */

/* When a process begins to end: what is shared is the last thing that it writes. */
static double *ending;

static void block_everywhere(const struct lazy_cpus *where, void *unused)
{
	struct lazy_self s;

	(void)unused;
	lazy_crowd_start(&crowd, where, where->nr - 1);
	/* Most are blocked by now; give the last a moment to become so. */
	lazy_wait(where->nr - 1, 5, &s);
	*ending = lazy_now();
}

/* As many as are asked for, in @repeat parts; of each part the median. */
static void count_exits(double *value, int repeat)
{
	long nr = lazy_env("LAZY_TLB_EXITS", 1000) / repeat;
	double *us = calloc(nr, sizeof(*us));
	long cal, tlb, i;
	int part, status;

	if (!us || !nr) {
		guest_problem("%ld exits cannot be measured", nr * repeat);
		return;
	}
	cal = lazy_irqs(guest_cross_call);
	tlb = lazy_irqs(lazy_tlb_call);
	for (part = 0; part < repeat; part++) {
		for (i = 0; i < nr; i++) {
			status = lazy_run(&cpus, block_everywhere, NULL);
			us[i] = (lazy_now() - *ending) * 1e6;
			if (status) {
				guest_problem("exit %ld of %ld: status %#x", i, nr, status);
				return;
			}
		}
		value[part] = guest_median(us, nr);
	}
	free(us);
	report("exits", nr * repeat);
	if (cal < 0)
		guest_problem("no line for cross-calls in /proc/interrupts");
	else
		report("cal_irqs", lazy_irqs(guest_cross_call) - cal);
	/* Only x86 counts them: no line where there is nothing to count. */
	if (tlb >= 0)
		report("tlb_irqs", lazy_irqs(lazy_tlb_call) - tlb);
	report_spread("exit_us", value, repeat);
}

/* ---- switches: user -> idle -> user on two CPUs ------------------------- */

struct rally {
	int fd[2];
	int cpu;
};

static void *return_serves(void *arg)
{
	struct rally *rally = arg;
	eventfd_t n;

	guest_go(rally->cpu);
	while (!eventfd_read(rally->fd[0], &n) && n == 1) {
		if (eventfd_write(rally->fd[1], 1))
			lazy_fail("eventfd: %s", strerror(errno));
	}
	return NULL;
}

/* Each round trip is a wake-up from idle on either CPU: two switches in. */
static void ping_pong(const struct lazy_cpus *where, void *arg)
{
	struct rally rally = { .cpu = where->cpu[1] };
	eventfd_t n;
	double *rate = arg, start, now;
	pthread_t thread;
	long trips = 0;

	rally.fd[0] = eventfd(0, 0);
	rally.fd[1] = eventfd(0, 0);
	if (rally.fd[0] < 0 || rally.fd[1] < 0 ||
	    pthread_create(&thread, NULL, return_serves, &rally))
		lazy_fail("ping-pong does not start: %s", strerror(errno));
	start = lazy_now();
	do {
		if (eventfd_write(rally.fd[0], 1) || eventfd_read(rally.fd[1], &n))
			lazy_fail("eventfd: %s", strerror(errno));
		trips++;
		now = lazy_now();
	} while (now - start < 0.5);
	*rate = 2 * trips / (now - start);
	if (eventfd_write(rally.fd[0], 2))
		lazy_fail("eventfd: %s", strerror(errno));
	pthread_join(thread, NULL);
}

static void switches(double *value, int repeat)
{
	int i, status;

	for (i = 0; i < repeat; i++) {
		status = lazy_run(&cpus, ping_pong, &value[i]);
		if (status || !value[i]) {
			guest_problem("ping-pong %d: status %#x", i, status);
			return;
		}
	}
	report_spread("switches_per_s", value, repeat);
}

/* ---- fork, exit and wait ------------------------------------------------- */

static void nothing(const struct lazy_cpus *where, void *arg)
{
	(void)where;
	(void)arg;
}

static void fork_exit(double *value, int repeat)
{
	double us[100], start;
	int i, j, status;

	for (i = 0; i < repeat; i++) {
		for (j = 0; j < 100; j++) {
			start = lazy_now();
			status = lazy_run(&cpus, nothing, NULL);
			us[j] = (lazy_now() - start) * 1e6;
			if (status) {
				guest_problem("fork+exit %d: status %#x", j, status);
				return;
			}
		}
		value[i] = guest_median(us, 100);
	}
	report_spread("fork_exit_us", value, repeat);
}

void run(void)
{
	int repeat = lazy_env("LAZY_TLB_REPEAT", 5);
	char policy[32];
	double *value;

	if (!lazy_policy(policy, sizeof(policy)) || repeat < 1) {
		guest_problem("no " LAZY_TLB_POLICY ", or to be repeated %d times", repeat);
		return;
	}
	guest_line("lazy-tlb-run: policy=%s", policy);
	report("cpus", lazy_cpus_get(&cpus));
	guest_cpus(&cpus);
	/* Shared: what a child measures is reported here. */
	value = guest_shared((repeat + 1) * sizeof(*value));
	ending = value + repeat;
	lazies();
	count_exits(value, repeat);
	switches(value, repeat);
	fork_exit(value, repeat);
}
