// SPDX-License-Identifier: GPL-2.0
/*
 * Much at once of what makes CPUs lazy on an mm or ends one: exec, threads that
 * exit, kills, core dumps, ptrace(2), membarrier(2), CPU hotplug, changes of the
 * policy and others. Each ingredient is done by a process of its own, some of
 * them at a time, in an order drawn from a seed. In the end no process, no
 * reference and no mm may be left.
 *
 * LAZY_TLB_SEED repeats a run, LAZY_TLB_SECONDS makes it longer, and
 * LAZY_TLB_TORTURE=name,name leaves out all other ingredients. What disturbs the
 * whole machine is done if it is asked for: CPU hotplug with LAZY_TLB_HOTPLUG=1,
 * the OOM killer with LAZY_TLB_OOM=1, or where the kernel has lazy TLB policies
 * unless that is 0.
 *
 * kthread_use_mm() is not in here: its users need hardware or drivers. The KUnit
 * suite has it.
 */
#include "harness.h"
#include "torture.h"

#include <signal.h>
#include <sys/prctl.h>

static const char * const event_name[NR_EVENTS] = {
	[EXITS] = "exits",
	[EXECS] = "execs",
	[THREADS] = "thread exits",
	[UNMAPS] = "unmaps",
	[KILLS] = "kills",
	[MRELEASES] = "mreleases",
	[CORES] = "cores",
	[TRACES] = "traces",
	[FAILED_FORKS] = "failed forks",
	[LOOKS] = "looks",
	[POKES] = "pokes",
	[BARRIERS] = "membarriers",
	[HOTPLUGS] = "hotplug cycles",
	[OOMS] = "OOM kills",
	[TOGGLES] = "toggles",
	[POLICIES] = "policy changes",
	[PROGRAMS] = "BPF programs",
	[EFI_CALLS] = "EFI calls",
	[RINGS] = "rings",
	[ADVICES] = "advices",
	[UFFDS] = "userfaultfds",
};

struct storm storm;
const struct ingredient *ingredient;

static const struct ingredient *ingredients[MAX_INGREDIENTS];

static struct lazy_crowd crowd;

FIXTURE(torture)
{
	struct lazy_test t;
	double seconds;
};

FIXTURE_SETUP(torture)
{
	lazy_setup(_metadata, &self->t, false);
	if (_metadata->exit_code)
		return;
	self->seconds = lazy_env("LAZY_TLB_SECONDS", 5);
	TH_LOG("LAZY_TLB_SECONDS=%.0f", self->seconds);
	storm.tally = mmap(NULL, sizeof(*storm.tally), PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, storm.tally);
	storm.cpus = self->t.cpus;
	storm.known = self->t.known;
	memcpy(storm.policy, self->t.policy, sizeof(storm.policy));
	lazy_cpus_can_offline(&storm.cpus, &storm.can);
	snprintf(storm.dir, sizeof(storm.dir), "/tmp/lazy_tlb.XXXXXX");
	if (!mkdtemp(storm.dir))
		*storm.dir = '\0';
	keys_save();
	memcg_set_up(&storm.memcg);
}

FIXTURE_TEARDOWN(torture)
{
	char path[64];
	int i;

	/* There are some only if this test has failed. */
	for (i = 0; i < storm.nr; i++) {
		if (storm.pids[i] > 0) {
			kill(storm.pids[i], SIGKILL);
			waitpid(storm.pids[i], NULL, 0);
		}
	}
	if (!lacks_hotplug())
		for (i = 0; i < storm.can.nr; i++)
			EXPECT_TRUE(lazy_set_online(storm.can.cpu[i], true));
	if (!lacks_policy())
		EXPECT_TRUE(lazy_set_policy(storm.policy));
	EXPECT_TRUE(keys_restore());
	EXPECT_TRUE(memcg_take_down(&storm.memcg));
	EXPECT_TRUE(efi_take_down());
	if (*storm.dir) {
		snprintf(path, sizeof(path), "%s/cgroup", storm.dir);
		rmdir(path);
		EXPECT_EQ(0, rmdir(storm.dir));
	}
	lazy_teardown(_metadata, &self->t);
}

static void torture(int index, unsigned int seed)
{
	bool done = false;
	int late = 0;

	ingredient = ingredients[index];
	/* What a unit leaves behind is for this process to see the end of. */
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	/* At least one, however slow the machine is. */
	while (!atomic_load(&storm.tally->stop) || (!done && late++ < 20)) {
		if (!ingredient->unit(&seed))
			continue;
		atomic_fetch_add(&storm.tally->units[index], 1);
		done = true;
	}
	_exit(0);
}

static const char *name_of(pid_t pid)
{
	int i;

	for (i = 0; i < storm.nr; i++)
		if (storm.pids[i] == pid)
			return ingredients[storm.order[i]]->name;
	return "somebody";
}

/* The ingredients in order[@first] and so on, all at once. */
static void wave(struct __test_metadata *_metadata,
		 int first, int nr, double seconds, unsigned int *seed)
{
	char names[512] = "";
	unsigned int own;
	int i, status;
	double end;
	pid_t pid;

	atomic_store(&storm.tally->stop, false);
	for (i = first; i < first + nr; i++) {
		strcat(names, " ");
		strcat(names, ingredients[storm.order[i]]->name);
	}
	TH_LOG("%ld exits; now%s", atomic_load(&storm.tally->events[EXITS]), names);
	for (i = first; i < first + nr; i++) {
		own = lazy_random(seed);
		storm.pids[i] = spawn();
		if (!storm.pids[i])
			torture(storm.order[i], own);
	}
	end = lazy_now() + seconds;
	while (lazy_now() < end) {
		lazy_sleep_us(20000);
		/* A process that is gone has found something: do not wait. */
		pid = waitpid(-1, &status, WNOHANG);
		ASSERT_EQ(0, pid)
			TH_LOG("%s ended with %#x", name_of(pid), status);
	}
	atomic_store(&storm.tally->stop, true);
	for (i = first; i < first + nr; i++) {
		pid = wait(&status);
		ASSERT_LT(0, pid);
		ASSERT_EQ(0, status)
			TH_LOG("%s ended with %#x", name_of(pid), status);
	}
	memset(storm.pids, 0, sizeof(storm.pids));
}

/* Those that this machine has go to order[]. */
static void choose(struct __test_metadata *_metadata)
{
	const char *only = getenv("LAZY_TLB_TORTURE");
	const struct ingredient *lists[] = { process_ingredients, machine_ingredients };
	const struct ingredient *next;
	const char *why;
	int i, nr = 0;

	for (i = 0; i < (int)ARRAY_SIZE(lists); i++) {
		for (next = lists[i]; next->name; next++) {
			ASSERT_GT(MAX_INGREDIENTS, nr);
			ingredients[nr++] = next;
		}
	}
	for (i = 0; i < nr; i++) {
		ingredient = ingredients[i];
		why = NULL;
		if (only && *only && !has_word(only, ",", ingredient->name))
			why = "not in LAZY_TLB_TORTURE";
		else if (ingredient->lacks)
			why = ingredient->lacks();
		if (why)
			TH_LOG("left out: %s: %s", ingredient->name, why);
		else
			storm.order[storm.nr++] = i;
	}
}

static void shuffle(int *order, int nr, unsigned int *seed)
{
	int i, j, tmp;

	for (i = nr - 1; i > 0; i--) {
		j = lazy_random(seed) % (i + 1);
		tmp = order[i];
		order[i] = order[j];
		order[j] = tmp;
	}
}

/* The storm is over: CPUs become lazy as ever, and hold what they should. */
static void become_lazy(const struct lazy_cpus *cpus, void *refcount)
{
	struct lazy_self s;

	lazy_occupy(&crowd, cpus, cpus->nr - 1, LAZY_BLOCK, &s);
	lazy_check_counts(*(bool *)refcount, "after the storm");
}

static void check_settled(struct __test_metadata *_metadata, struct lazy_test *t)
{
	struct lazy_self s;
	int status;

	if (!t->known || !lazy_self(&s)) {
		TH_LOG("left out: lazy state: no " LAZY_TLB_SELF);
		return;
	}
	status = lazy_run(&t->cpus, become_lazy, &t->refcount);
	lazy_assert_exited(_metadata, status, 0);
}

TEST_F_TIMEOUT(torture, storm, LAZY_TIMEOUT)
{
	unsigned int seed = self->t.seed;
	struct lazy_leftovers before;
	int i, first, waves, width;
	char text[1024];
	size_t len = 0;
	double slice, end;

	choose(_metadata);
	if (!storm.nr)
		SKIP(return, "nothing can run");
	lazy_leftovers(&before);

	/* As many at a time as keep all CPUs busy, but all of them once. */
	width = self->t.cpus.nr + 2;
	waves = (storm.nr + width - 1) / width;
	width = (storm.nr + waves - 1) / waves;
	slice = self->seconds / waves;
	if (slice > 5)
		slice = 5;
	end = lazy_now() + self->seconds;
	do {
		shuffle(storm.order, storm.nr, &seed);
		for (first = 0; first < storm.nr; first += width)
			wave(_metadata, first,
			     width < storm.nr - first ? width : storm.nr - first,
			     slice, &seed);
	} while (lazy_now() < end);

	for (i = 0; i < NR_EVENTS; i++)
		len += snprintf(text + len, sizeof(text) - len, ", %ld %s",
				atomic_load(&storm.tally->events[i]), event_name[i]);
	TH_LOG("torture: seed %u%s", self->t.seed, text);
	for (i = 0; i < storm.nr; i++)
		EXPECT_LT(0, atomic_load(&storm.tally->units[storm.order[i]]))
			TH_LOG("nothing came of %s", ingredients[storm.order[i]]->name);

	/* Not one child is left, nor a child's child. */
	ASSERT_EQ(-1, waitpid(-1, NULL, WNOHANG));
	ASSERT_EQ(ECHILD, errno);
	if (!lacks_policy())
		ASSERT_TRUE(lazy_set_policy(storm.policy));
	check_settled(_metadata, &self->t);
	lazy_check_leftovers(_metadata, &self->t, &before);
}

int main(int argc, char **argv)
{
	lazy_exec_target(argc, argv);
	return test_harness_run(argc, argv);
}
