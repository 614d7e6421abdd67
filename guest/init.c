// SPDX-License-Identifier: GPL-2.0
/*
 * The first process of the guests that `bisect` boots: it only has to come up
 * and to end, with any kernel. A few processes leave lazy CPUs behind first.
 *
 * LAZY_TLB_WAIT=1 on the kernel command line: it does not end.
 */
#include "common.h"

#define PROCESSES	20

static void roam(const struct lazy_cpus *cpus, void *arg)
{
	(void)arg;
	lazy_roam(cpus, cpus->nr - 1);
}

int main(void)
{
	struct lazy_cpus cpus;
	int i;

	guest_start();
	if (!lazy_cpus_get(&cpus))
		guest_problem("cannot tell the CPUs");
	for (i = 0; i < PROCESSES && !guest_status; i++)
		if (lazy_run(&cpus, roam, NULL))
			guest_problem("process %d did not end well", i);
	/* The kernel is to end the guest by itself. */
	while (lazy_env("LAZY_TLB_WAIT", 0))
		pause();
	guest_end();
}
