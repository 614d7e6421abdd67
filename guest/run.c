// SPDX-License-Identifier: GPL-2.0
/*
 * The first process of the main job's guest: the same workload whatever the
 * policy, reported as `lazy-tlb-run: key=value` lines.
 *
 * From the kernel command line: LAZY_TLB_EXITS (multi-CPU processes to end,
 * 1000), LAZY_TLB_REPEAT (of the timed parts, 5).
 */
#include "common.h"

#include <sys/eventfd.h>

static struct lazy_cpus cpus;
static struct lazy_crowd crowd;

static void report(const char *key, double value)
{
	guest_line("lazy-tlb-run: %s=%.0f", key, value);
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* Sorts; the lower of the two middle ones, so that it is one that was measured. */
static double median(double *values, int nr)
{
	qsort(values, nr, sizeof(*values), compare);
	return values[(nr - 1) / 2];
}

static void report_spread(const char *key, double *values, int nr)
{
	char name[64];

	report(key, median(values, nr));
	snprintf(name, sizeof(name), "%s_min", key);
	report(name, values[0]);
	snprintf(name, sizeof(name), "%s_max", key);
	report(name, values[nr - 1]);
}

/* ---- lazy CPUs and the references they hold ---------------------------- */

static void measure_lazies(const struct lazy_cpus *where, void *arg)
{
	struct lazy_self *result = arg, base, s;

	if (!lazy_self(&base))
		lazy_fail("cannot read " LAZY_TLB_SELF);
	lazy_occupy(&crowd, where, where->nr - 1, LAZY_BLOCK, &s);
	if (base.lazies)
		lazy_fail("%ld CPUs lazy on a new mm", base.lazies);
	result->lazies = s.lazies;
	result->mm_count = s.mm_count - base.mm_count;
}

static void lazies(void)
{
	struct lazy_self *result;
	int status;

	result = mmap(NULL, sizeof(*result), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (result == MAP_FAILED) {
		guest_problem("mmap: %s", strerror(errno));
		return;
	}
	status = lazy_run(&cpus, measure_lazies, result);
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

static void block_everywhere(const struct lazy_cpus *where, void *known)
{
	struct lazy_self s;

	lazy_crowd_start(&crowd, where, where->nr - 1);
	/* Most are blocked by now; give the last a moment to become so. */
	if (known)
		lazy_wait(where->nr - 1, 5, &s);
	else
		lazy_sleep_us(1000);
	*ending = lazy_now();
}

/* As many as are asked for, in @repeat parts; of each part the median. */
static void exits(bool known, double *value, int repeat)
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
			status = lazy_run(&cpus, block_everywhere, known ? &cpus : NULL);
			us[i] = (lazy_now() - *ending) * 1e6;
			if (status) {
				guest_problem("exit %ld of %ld: status %#x", i, nr, status);
				return;
			}
		}
		value[part] = median(us, nr);
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

	if (!lazy_pin(0, rally->cpu))
		lazy_fail("cannot run on CPU %d: %s", rally->cpu, strerror(errno));
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
		value[i] = median(us, 100);
	}
	report_spread("fork_exit_us", value, repeat);
}

int main(void)
{
	int repeat = lazy_env("LAZY_TLB_REPEAT", 5);
	char policy[32];
	double *value;
	bool known;

	guest_start();
	known = lazy_policy(policy, sizeof(policy));
	if (known)
		guest_line("lazy-tlb-run: policy=%s", policy);
	else
		guest_problem("no " LAZY_TLB_POLICY);
	report("cpus", lazy_cpus_get(&cpus));
	/* Shared: what a child measures is reported here. */
	value = mmap(NULL, (repeat + 1) * sizeof(*value), PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (cpus.nr < 2) {
		guest_problem("nothing can be measured on one CPU");
	} else if (repeat < 1 || value == MAP_FAILED) {
		guest_problem("cannot repeat %d times", repeat);
	} else {
		ending = value + repeat;
		if (known)
			lazies();
		exits(known, value, repeat);
		switches(value, repeat);
		fork_exit(value, repeat);
	}
	guest_end();
}
