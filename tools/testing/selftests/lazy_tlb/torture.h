/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the parts of torture have in common: torture.c runs the ingredients,
 * torture_process.c has those that are made of processes, and
 * torture_machine.c those that change the machine under them.
 */
#ifndef SELFTESTS_LAZY_TLB_TORTURE_H
#define SELFTESTS_LAZY_TLB_TORTURE_H

#include "kselftest.h"
#include "lazy_tlb.h"

#define MAX_INGREDIENTS	32

/* What is counted, for all ingredients together. */
enum event {
	EXITS,
	EXECS,
	THREADS,
	UNMAPS,
	KILLS,
	MRELEASES,
	CORES,
	TRACES,
	FAILED_FORKS,
	LOOKS,
	POKES,
	BARRIERS,
	HOTPLUGS,
	OOMS,
	TOGGLES,
	POLICIES,
	PROGRAMS,
	EFI_CALLS,
	RINGS,
	ADVICES,
	UFFDS,
	NR_EVENTS
};

/* Shared by all processes. */
struct tally {
	atomic_long events[NR_EVENTS];
	atomic_long units[MAX_INGREDIENTS];
	atomic_bool stop;
};

/* Files that switch a static key. */
#define NR_KEY_FILES	2

/* Control groups, in one of their two versions. */
struct memcg {
	char dir[PATH_MAX];	/* empty: there is none */
	const char *limit;
	bool mounted;		/* by this test */
	bool enabled;		/* by this test */
	char root[PATH_MAX - 64];
};

/* The same for all processes of a test, set before the first one starts. */
struct storm {
	struct lazy_cpus cpus;
	struct lazy_cpus can;	/* CPUs that can be taken offline */
	struct tally *tally;
	bool known;		/* the policy */
	char policy[32];	/* what was there before */
	char dir[32];		/* for files */
	char key[NR_KEY_FILES][16];	/* what was there before */
	struct memcg memcg;
	char efi[PATH_MAX];	/* a variable */
	bool efi_mounted;	/* by this test */
	/* Not for them, but for the test itself. */
	int nr;				/* of those that this machine has */
	int order[MAX_INGREDIENTS];
	pid_t pids[MAX_INGREDIENTS];	/* of those in order[] that run now */
};

extern struct storm storm;

struct ingredient {
	const char *name;
	/* Why this kernel or this machine cannot have it, or NULL. */
	const char *(*lacks)(void);
	/* False if nothing came of it, which does no harm but does not count. */
	bool (*unit)(unsigned int *seed);
	int command;		/* of membarrier(2), or madvise(2) */
};

/* Those of each file; the last has no name. */
extern const struct ingredient process_ingredients[], machine_ingredients[];

/* What this process is for. */
extern const struct ingredient *ingredient;

#define fail(fmt, ...)	lazy_fail("%s: " fmt, ingredient->name, ##__VA_ARGS__)

static inline void count(enum event event, long nr)
{
	atomic_fetch_add(&storm.tally->events[event], nr);
}

static inline void go_somewhere(unsigned int *seed)
{
	lazy_go_somewhere(&storm.cpus, seed);
}

/* Processes, for all ingredients: torture_process.c. */
pid_t spawn(void);
int reap(pid_t pid);
void check_killed(int status);
void reap_killed(pid_t pid);
void tell(int fd);
bool await(int fd);
void make_pipe(int fds[2]);
void start_crowd(unsigned int *seed);
void big_process(unsigned int *seed);

/* The machine as it was, before and after: torture_machine.c. */
const char *lacks_hotplug(void);
const char *lacks_policy(void);
bool has_word(const char *text, const char *separators, const char *word);
void keys_save(void);
bool keys_restore(void);
void memcg_set_up(struct memcg *memcg);
bool memcg_take_down(struct memcg *memcg);
bool efi_take_down(void);

#endif /* SELFTESTS_LAZY_TLB_TORTURE_H */
