/* SPDX-License-Identifier: GPL-2.0 */
/* What a guest may be booted for, and what all of that needs. */
#ifndef GUEST_INIT_H
#define GUEST_INIT_H

#include "../tools/testing/selftests/lazy_tlb/lazy_tlb.h"

#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <termios.h>

/* Each in a file of its own. */
void exits(void);
void ipis(void);
void lines(void);
void load(void);
void run(void);
void tests(void);

/* Programs that the workload of ipis() executes are this one, with this as first argument. */
#define IPIS_WORK	"--work"
int ipis_work(const char *role, const char *number);
/* So are those that a load is made of. */
#define LOAD_WORK	"--load"
int load_work(const char *what, const char *number);

/* Nonzero once anything went wrong that is no test's own result. */
extern int guest_status;

/* Drained, so that nothing the kernel prints later lands within the line. */
#define guest_line(fmt, ...) do {					\
	lazy_line(STDOUT_FILENO, fmt, ##__VA_ARGS__);			\
	tcdrain(STDOUT_FILENO);						\
} while (0)

#define guest_problem(fmt, ...) do {					\
	guest_line("lazy-tlb-guest: " fmt, ##__VA_ARGS__);		\
	guest_status = 1;						\
} while (0)

void guest_end(void) __attribute__((noreturn));

/* The two that end a guest where there is nothing to be measured. */
void guest_cpus(struct lazy_cpus *cpus);
void *guest_shared(size_t size);

/* LAZY_TLB_POLICIES: those to be set one after the other. Returns how many. */
#define GUEST_MAX_POLICIES	300
int guest_policies(char *policy[GUEST_MAX_POLICIES]);

/* For a child: ends it where it cannot run there. */
void guest_go(int cpu);

double guest_median(double *values, long nr);

/* How the architectures call what carries a cross-call in /proc/interrupts. */
extern const char * const guest_cross_call[];

#endif /* GUEST_INIT_H */
