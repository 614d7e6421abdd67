/* SPDX-License-Identifier: GPL-2.0 */
/* What lines.c and load.c have in common: marks, and what only the kernel's memory says. */
#ifndef GUEST_LINES_H
#define GUEST_LINES_H

#include "init.h"

/* From the first the emulator's plugin looks at everything, between the others it counts. */
void lines_arm(void);
void lines_begin(void);
void lines_end(void);

/* Says where each CPU's variables are. Returns how many policies take turns. */
int lines_start(struct lazy_cpus *cpus, char *policy[GUEST_MAX_POLICIES]);
void lines_turn(char *policy);
void lines_announce(const char *name, const struct lazy_cpus *cpus, unsigned long mm);

/* A process's mm, 0 where there is none. */
unsigned long lines_mm(pid_t pid);
long lines_switches(void);

#endif /* GUEST_LINES_H */
