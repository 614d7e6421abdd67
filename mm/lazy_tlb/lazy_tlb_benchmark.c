// SPDX-License-Identifier: GPL-2.0
/*
 * What a lazy use of an mm costs, and its final drop, under each policy in turn.
 *
 *  - A trip is what a switch from a user task to the idle task and back does about
 *    lazy TLB: borrow the mm, and give it back. It is timed on one CPU, on two at
 *    once, on four, and so on, all with the same mm. Whatever CPUs share shows in
 *    how much longer it takes on many.
 *  - A switch is a trip with everything else that the scheduler does for it: on each
 *    of these CPUs, a kernel thread that uses the mm and one that has none wake each
 *    other. So it is two wake-ups and two times schedule() with context_switch().
 *  - A drop is the last mmdrop() of an mm that CPUs have been lazy on, but are not
 *    any more. It is timed for one such CPU, two, four, and so on.
 *
 * It runs once, at boot, before the first process. The policies take turns in each
 * round. Times are printed in picoseconds.
 */
#define pr_fmt(fmt) "lazy_tlb_benchmark: " fmt

#include <linux/completion.h>
#include <linux/cpumask.h>
#include <linux/init.h>
#include <linux/kthread.h>
#include <linux/lazy_tlb.h>
#include <linux/math64.h>
#include <linux/mm_types.h>
#include <linux/printk.h>
#include <linux/sched.h>
#include <linux/sched/clock.h>
#include <linux/sched/mm.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/sort.h>
#include <linux/string.h>
#include <linux/timekeeping.h>

/* Each time is taken so often. */
#define ROUNDS	31

/* Trips of all CPUs in a round, and the least of each. */
#define TRIPS		10000
#define TRIPS_OF_EACH	1000

/* Mms that are dropped in a round. */
#define DROPS	8

/* CPUs that have not met after so many nanoseconds are given up. */
#define PATIENCE	(100 * NSEC_PER_MSEC)

static const char * const policies[] __initconst = {
	"refcount", "handover", "shootdown",
};

#define NR_POLICIES	ARRAY_SIZE(policies)

static u64 times[NR_POLICIES][ROUNDS] __initdata;
static cpumask_t used __initdata;

struct trips {
	struct mm_struct *mm;
	unsigned int cpus;
	unsigned int trips;
	atomic_t arrived;
	atomic_t finished;
	atomic64_t ns;
};

/* In a cross-call: interrupts are disabled. */
static void make_trips(void *arg)
{
	struct trips *t = arg;
	struct mm_struct *returned;
	unsigned int i;
	u64 start;

	/* The slot is needed. A user task leaves it empty anyway. */
	lazy_tlb_let_go(current->active_mm);

	start = ktime_get_ns();
	atomic_inc(&t->arrived);
	while (atomic_read(&t->arrived) < t->cpus) {
		if (ktime_get_ns() - start > PATIENCE)
			return;
		cpu_relax();
	}

	start = ktime_get_ns();
	for (i = 0; i < t->trips; i++) {
		lazy_tlb_borrow(t->mm);
		returned = lazy_tlb_return(t->mm);
		lazy_tlb_put_sched(returned);
	}
	atomic64_add(ktime_get_ns() - start, &t->ns);
	atomic_inc(&t->finished);
}

static unsigned int __init trips_of_each(unsigned int cpus)
{
	return max(TRIPS / cpus, TRIPS_OF_EACH);
}

/* The mean over the CPUs of the time of one trip. */
static u64 __init round_of_trips(void)
{
	struct trips t = {
		.mm = mm_alloc(),
		.cpus = cpumask_weight(&used),
	};

	if (!t.mm)
		return 0;
	t.trips = trips_of_each(t.cpus);
	on_each_cpu_mask(&used, make_trips, &t, true);
	mmput(t.mm);
	if (atomic_read(&t.finished) != t.cpus)
		return 0;
	return div_u64(atomic64_read(&t.ns) * 1000, t.cpus * t.trips);
}

/* A CPU's two threads; both stay on it. */
struct pair {
	struct trips *trips;
	struct completion *ended;
	struct task_struct *user;
	struct task_struct *lazy;
	unsigned int turns;		/* of the lazy one */
	bool done;
};

static void give_turn_to(struct task_struct *other)
{
	set_current_state(TASK_IDLE);
	wake_up_process(other);
	schedule();
}

static int use_mm_in_turns(void *arg)
{
	struct pair *pair = arg;
	struct trips *t = pair->trips;
	unsigned int i;
	u64 start;

	kthread_use_mm(t->mm);
	start = ktime_get_ns();
	atomic_inc(&t->arrived);
	while (atomic_read(&t->arrived) < 2 * t->cpus) {
		if (ktime_get_ns() - start > PATIENCE)
			goto out;
		give_turn_to(pair->lazy);
	}

	pair->turns = 0;
	start = ktime_get_ns();
	for (i = 0; i < t->trips; i++)
		give_turn_to(pair->lazy);
	/* Each must have been a trip. */
	if (pair->turns >= t->trips) {
		atomic64_add(ktime_get_ns() - start, &t->ns);
		atomic_inc(&t->finished);
	}
out:
	kthread_unuse_mm(t->mm);
	pair->done = true;
	wake_up_process(pair->lazy);
	complete(pair->ended);
	return 0;
}

static int be_lazy_in_turns(void *arg)
{
	struct pair *pair = arg;

	atomic_inc(&pair->trips->arrived);
	while (!pair->done) {
		pair->turns++;
		give_turn_to(pair->user);
	}
	return 0;
}

static struct task_struct * __init create(int (*fn)(void *), struct pair *pair,
					  unsigned int cpu)
{
	struct task_struct *task;

	task = kthread_create_on_cpu(fn, pair, cpu, "lazy_tlb/%u");
	if (IS_ERR(task))
		return NULL;
	sched_set_fifo_low(task);
	return get_task_struct(task);
}

/* The mean over the CPUs of the time from the task with the mm to the other and back. */
static u64 __init round_of_switches(void)
{
	DECLARE_COMPLETION_ONSTACK(ended);
	struct trips t = {
		.mm = mm_alloc(),
		.cpus = cpumask_weight(&used),
	};
	unsigned int cpu, nr = 0, n;
	struct pair *pairs;
	bool all = true;

	t.trips = trips_of_each(t.cpus);
	pairs = kcalloc(t.cpus, sizeof(*pairs), GFP_KERNEL);
	if (!t.mm || !pairs)
		goto out;
	for_each_cpu(cpu, &used) {
		struct pair *pair = &pairs[nr++];

		pair->trips = &t;
		pair->ended = &ended;
		pair->user = create(use_mm_in_turns, pair, cpu);
		pair->lazy = create(be_lazy_in_turns, pair, cpu);
		all &= pair->user && pair->lazy;
	}
	if (all) {
		/* Above them, or none could be woken after those of this CPU. */
		sched_set_fifo(current);
		for (n = 0; n < nr; n++)
			wake_up_process(pairs[n].user);
		for (n = 0; n < nr; n++)
			wait_for_completion(&ended);
		sched_set_normal(current, 0);
	}
	for (n = 0; n < nr; n++) {
		if (pairs[n].user)
			kthread_stop_put(pairs[n].user);
		if (pairs[n].lazy)
			kthread_stop_put(pairs[n].lazy);
	}
out:
	kfree(pairs);
	if (t.mm)
		mmput(t.mm);
	if (atomic_read(&t.finished) != t.cpus)
		return 0;
	return div_u64(atomic64_read(&t.ns) * 1000, t.cpus * t.trips);
}

/* The time of the final drop of an mm that the CPUs have been lazy on. */
static u64 __init round_of_drops(void)
{
	struct mm_struct *mm[DROPS];
	unsigned int i;
	u64 start;

	for (i = 0; i < DROPS; i++) {
		mm[i] = mm_alloc();
		if (!mm[i])
			break;
		mmgrab(mm[i]);
		/* A counted borrow leaves no bit behind. */
		if (!lazy_tlb_policy_counts())
			cpumask_or(mm_lazy_tlb_cpumask(mm[i]),
				   mm_lazy_tlb_cpumask(mm[i]), &used);
		mmput(mm[i]);
	}
	start = ktime_get_ns();
	for (unsigned int n = 0; n < i; n++)
		mmdrop(mm[n]);
	return i == DROPS ? div_u64((ktime_get_ns() - start) * 1000, DROPS) : 0;
}

static int __init compare(const void *a, const void *b)
{
	const u64 *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

static void __init measure(const char *what, u64 (*round)(void),
			   unsigned int times_each)
{
	unsigned int policy, n;

	/* Once more, to warm up. */
	for (n = 0; n <= ROUNDS; n++) {
		for (policy = 0; policy < NR_POLICIES; policy++) {
			u64 ps;

			lazy_tlb_change_policy(policies[policy]);
			ps = round();
			if (!ps) {
				pr_err("not all CPUs came in time, or no memory\n");
				return;
			}
			if (n)
				times[policy][n - 1] = ps;
		}
	}
	for (policy = 0; policy < NR_POLICIES; policy++) {
		u64 *of = times[policy];

		sort(of, ROUNDS, sizeof(*of), compare, NULL);
		pr_info("what=%s policy=%s cpus=%u rounds=%u ps_median=%llu ps_min=%llu ps_max=%llu times=%u\n",
			what, policies[policy], cpumask_weight(&used), ROUNDS,
			of[ROUNDS / 2], of[0], of[ROUNDS - 1], times_each);
	}
}

static int __init lazy_tlb_benchmark(void)
{
	unsigned int online = num_online_cpus(), cpus = 1, cpu;
	char before[16];

	strscpy(before, lazy_tlb_policy_name());
	for (;;) {
		cpumask_clear(&used);
		for_each_online_cpu(cpu)
			if (cpumask_weight(&used) < cpus)
				cpumask_set_cpu(cpu, &used);
		measure("trip", round_of_trips, trips_of_each(cpus));
		measure("switch", round_of_switches, trips_of_each(cpus));
		measure("drop", round_of_drops, DROPS);
		if (cpus == online)
			break;
		cpus = min(2 * cpus, online);
	}
	lazy_tlb_change_policy(before);
	return 0;
}
late_initcall(lazy_tlb_benchmark);
