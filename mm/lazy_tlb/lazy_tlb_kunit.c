// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit tests of lazy TLB mms: what the slots say while kernel threads borrow
 * an mm, and what the final drop does about CPUs that are lazy on it, under
 * whichever policy was chosen on the command line.
 *
 * They run at boot, before the first process. So no user task takes a CPU away
 * from the mm it is lazy on, and nobody else drops mms: that is why counters can
 * be compared exactly. CPUs neither come nor go.
 */
#include <kunit/test.h>
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/hw_breakpoint.h>
#include <linux/jiffies.h>
#include <linux/kthread.h>
#include <linux/lazy_tlb.h>
#include <linux/mm.h>
#include <linux/mm_types.h>
#include <linux/perf_event.h>
#include <linux/pm_qos.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/smp.h>
#include <linux/string.h>
#include <linux/vmstat.h>

/* Enough to tell one from many; more only take longer. */
#define MAX_CPUS	8

/* Longer than anything that is waited for takes, in seconds. */
#define PATIENCE	20

struct fixture {
	/* cpu[0] is home, where the test runs; the others can be made lazy. */
	unsigned int nr;
	unsigned int cpu[MAX_CPUS];
	struct kthread_worker *worker[MAX_CPUS];
	struct pm_qos_request awake;
	unsigned long *events;
};

/* ---- what is in force ------------------------------------------------- */

static bool policy_is(const char *name)
{
	return !strcmp(lazy_tlb_policy_name(), name);
}

/* ---- counters --------------------------------------------------------- */

struct counts {
	unsigned long final_drops;
	unsigned long scanned;
	unsigned long found_lazy;
	unsigned long ipis;
	unsigned long local;
	unsigned long deferred;
	unsigned long reaped;
	unsigned long rounds;
	unsigned long round_ipis;
};

static struct counts count_now(struct fixture *f)
{
	all_vm_events(f->events);
	return (struct counts) {
		.final_drops = f->events[LAZY_TLB_FINAL_DROPS],
		.scanned = f->events[LAZY_TLB_SCANNED],
		.found_lazy = f->events[LAZY_TLB_FOUND_LAZY],
		.ipis = f->events[LAZY_TLB_IPIS],
		.local = f->events[LAZY_TLB_LOCAL],
		.deferred = f->events[LAZY_TLB_DEFERRED],
		.reaped = f->events[LAZY_TLB_REAPED],
		.rounds = f->events[LAZY_TLB_ROUNDS],
		.round_ipis = f->events[LAZY_TLB_ROUND_IPIS],
	};
}

/*
 * What has happened since @before must be @drops final drops, of mms that
 * @remote other CPUs and @local times the dropping CPU itself were lazy on.
 */
static void expect_drops(struct kunit *test, const struct counts *before,
			 unsigned long drops, unsigned long remote,
			 unsigned long local)
{
	struct counts now = count_now(test->priv);
	unsigned long ipis = now.ipis - before->ipis;

	if (lazy_tlb_refcounted()) {
		/* Nobody is lazy on an mm when its count gets to zero. */
		KUNIT_EXPECT_EQ(test, now.final_drops - before->final_drops, 0);
		KUNIT_EXPECT_EQ(test, now.found_lazy - before->found_lazy, 0);
		KUNIT_EXPECT_EQ(test, ipis, 0);
		return;
	}

	KUNIT_EXPECT_EQ(test, now.final_drops - before->final_drops, drops);
	KUNIT_EXPECT_EQ(test, now.found_lazy - before->found_lazy, remote + local);
	/* Where leaving an mm leaves its mask too, the local CPU may be gone. */
	KUNIT_EXPECT_GE(test, now.scanned - before->scanned, remote);
	KUNIT_EXPECT_EQ(test, now.local - before->local, local);
	if (policy_is("shootdown"))
		KUNIT_EXPECT_EQ(test, ipis, remote);
	else if (policy_is("unconditional"))
		KUNIT_EXPECT_GE(test, ipis, remote);
	else if (policy_is("defer"))
		KUNIT_EXPECT_EQ(test, ipis, 0);
	KUNIT_EXPECT_EQ(test, now.deferred - before->deferred,
			policy_is("defer") && remote ? drops : 0);
}

/* ---- other CPUs ------------------------------------------------------- */

/* Something that a kernel thread does on its CPU. */
struct order {
	struct kthread_work work;
	struct mm_struct *mm;
	struct mm_struct *slot[2];
	struct mm_struct *active_mm;
};

static void use_fn(struct kthread_work *work)
{
	struct order *order = container_of(work, struct order, work);

	order->slot[0] = lazy_tlb_slot_of(smp_processor_id());
	kthread_use_mm(order->mm);
	order->slot[1] = lazy_tlb_slot_of(smp_processor_id());
}

static void unuse_fn(struct kthread_work *work)
{
	struct order *order = container_of(work, struct order, work);

	order->slot[0] = lazy_tlb_slot_of(smp_processor_id());
	kthread_unuse_mm(order->mm);
	order->slot[1] = lazy_tlb_slot_of(smp_processor_id());
	order->active_mm = current->active_mm;
}

static void look_fn(struct kthread_work *work)
{
	struct order *order = container_of(work, struct order, work);

	order->slot[0] = lazy_tlb_slot_of(smp_processor_id());
	order->active_mm = current->active_mm;
}

/* The thread is bound to its CPU. Returns when it is done. */
static struct order command(struct kthread_worker *worker, kthread_work_func_t fn,
			    struct mm_struct *mm)
{
	struct order order = { .mm = mm };

	kthread_init_work(&order.work, fn);
	kthread_queue_work(worker, &order.work);
	kthread_flush_work(&order.work);
	return order;
}

/* Leave a CPU lazy on @mm, whatever it was lazy on before. */
static void make_lazy(struct fixture *f, unsigned int i, struct mm_struct *mm)
{
	command(f->worker[i], use_fn, mm);
	command(f->worker[i], unuse_fn, mm);
}

struct sight {
	struct mm_struct *slot;
	struct mm_struct *active_mm;
};

static void look_ipi(void *arg)
{
	struct sight *sight = arg;

	sight->slot = lazy_tlb_slot_of(smp_processor_id());
	sight->active_mm = current->active_mm;
}

/* Ask the CPU itself, in an interrupt. */
static void expect_lazy_on(struct kunit *test, unsigned int cpu, struct mm_struct *mm)
{
	struct sight sight = {};

	KUNIT_EXPECT_PTR_EQ(test, lazy_tlb_slot_of(cpu), mm);
	KUNIT_EXPECT_EQ(test, smp_call_function_single(cpu, look_ipi, &sight, true), 0);
	KUNIT_EXPECT_PTR_EQ(test, sight.slot, mm);
	KUNIT_EXPECT_PTR_EQ(test, sight.active_mm, mm);
}

/* Not lazy on anything, that is: it has init_mm. */
static void expect_not_lazy(struct kunit *test, unsigned int cpu)
{
	struct sight sight = {};

	KUNIT_EXPECT_NULL(test, lazy_tlb_slot_of(cpu));
	KUNIT_EXPECT_EQ(test, smp_call_function_single(cpu, look_ipi, &sight, true), 0);
	KUNIT_EXPECT_NULL(test, sight.slot);
	KUNIT_EXPECT_PTR_EQ(test, sight.active_mm, &init_mm);
}

/*
 * After the last reference to @mm but those of lazy CPUs is gone, @cpu must
 * have let go of it, or may keep it, as the policy wants. Under a policy that
 * defers, there is nothing to say: the mm may go at any time.
 */
static void expect_dropped(struct kunit *test, unsigned int cpu, struct mm_struct *mm)
{
	if (lazy_tlb_refcounted())
		expect_lazy_on(test, cpu, mm);
	else if (!policy_is("defer"))
		expect_not_lazy(test, cpu);
}

/* ---- mms -------------------------------------------------------------- */

static struct mm_struct *new_mm(struct kunit *test)
{
	struct mm_struct *mm = mm_alloc();

	KUNIT_ASSERT_NOT_NULL(test, mm);
	return mm;
}

/* @refs references, and one for each of @lazy lazy CPUs, if those count. */
static void expect_count(struct kunit *test, struct mm_struct *mm, int refs, int lazy)
{
	int want = refs + (lazy_tlb_refcounted() ? lazy : 0);

	KUNIT_EXPECT_EQ(test, atomic_read(&mm->mm_count), want);
}

/* ---- before and after each test --------------------------------------- */

static int lazy_tlb_test_init(struct kunit *test)
{
	unsigned int cpu;
	struct fixture *f;

	f = kunit_kzalloc(test, sizeof(*f), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, f);
	f->events = kunit_kcalloc(test, NR_VM_EVENT_ITEMS, sizeof(*f->events),
				  GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, f->events);

	if (num_online_cpus() < 2)
		kunit_skip(test, "needs two online CPUs");

	test->priv = f;
	/* Deep idle states of some machines let go of a lazy mm by themselves. */
	cpu_latency_qos_add_request(&f->awake, 0);

	for_each_online_cpu(cpu) {
		struct kthread_worker *worker;

		if (f->nr == MAX_CPUS)
			break;
		worker = kthread_run_worker_on_cpu(cpu, 0, "lazy_tlb_test/%u");
		KUNIT_ASSERT_NOT_ERR_OR_NULL(test, worker);
		f->cpu[f->nr] = cpu;
		f->worker[f->nr++] = worker;
	}
	return set_cpus_allowed_ptr(current, cpumask_of(f->cpu[0]));
}

static void lazy_tlb_test_exit(struct kunit *test)
{
	struct fixture *f = test->priv;

	if (!f)
		return;
	/* The next test shall not share a round with what waits now. */
	lazy_tlb_flush_waiting();
	while (f->nr)
		kthread_destroy_worker(f->worker[--f->nr]);
	cpu_latency_qos_remove_request(&f->awake);
}

/* ---- the slots -------------------------------------------------------- */

/* A CPU whose kernel thread gives an mm back stays lazy on it. */
static void unuse_mm_publishes(struct kunit *test)
{
	struct fixture *f = test->priv;
	struct mm_struct *mm = new_mm(test);
	struct order order;

	expect_count(test, mm, 1, 0);

	/* While the thread has the mm it is no borrower, but a user. */
	order = command(f->worker[1], use_fn, mm);
	KUNIT_EXPECT_NULL(test, order.slot[1]);

	order = command(f->worker[1], unuse_fn, mm);
	KUNIT_EXPECT_NULL(test, order.slot[0]);
	KUNIT_EXPECT_PTR_EQ(test, order.slot[1], mm);
	KUNIT_EXPECT_PTR_EQ(test, order.active_mm, mm);

	expect_lazy_on(test, f->cpu[1], mm);
	expect_count(test, mm, 1, 1);
	mmput(mm);
}

/* Kernel threads come and go on a lazy CPU: they inherit what it is lazy on. */
static void kernel_to_kernel_keeps_the_slot(struct kunit *test)
{
	struct fixture *f = test->priv;
	struct kthread_worker *second;
	struct mm_struct *mm;
	struct counts before;
	struct order order;
	int i;

	mm = new_mm(test);
	second = kthread_run_worker_on_cpu(f->cpu[1], 0, "lazy_tlb_2nd/%u");
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, second);

	make_lazy(f, 1, mm);
	for (i = 0; i < 100; i++) {
		order = command(i & 1 ? f->worker[1] : second, look_fn, NULL);
		if (order.slot[0] == mm && order.active_mm == mm)
			continue;
		KUNIT_FAIL(test, "switch %d: slot %p, active_mm %p, not %p", i,
			   order.slot[0], order.active_mm, mm);
		break;
	}
	expect_lazy_on(test, f->cpu[1], mm);
	expect_count(test, mm, 1, 1);

	before = count_now(f);
	mmput(mm);
	expect_drops(test, &before, 1, 1, 0);
	kthread_destroy_worker(second);
}

/* A thread that takes an mm of its own ends what the CPU was lazy on. */
static void use_mm_retires(struct kunit *test)
{
	struct fixture *f = test->priv;
	struct mm_struct *other = new_mm(test);
	struct mm_struct *mm = new_mm(test);
	struct counts before;
	struct order order;

	make_lazy(f, 1, mm);
	order = command(f->worker[1], use_fn, other);
	KUNIT_EXPECT_PTR_EQ(test, order.slot[0], mm);
	KUNIT_EXPECT_NULL(test, order.slot[1]);
	expect_count(test, mm, 1, 0);
	command(f->worker[1], unuse_fn, other);
	expect_lazy_on(test, f->cpu[1], other);

	before = count_now(f);
	mmput(mm);
	expect_drops(test, &before, 1, 0, 0);
	expect_lazy_on(test, f->cpu[1], other);
	mmput(other);
}

/* The CPU that becomes lazy is the one where the thread gives the mm back. */
static void unuse_mm_after_migration(struct kunit *test)
{
	struct fixture *f = test->priv;
	struct mm_struct *other = new_mm(test);
	struct mm_struct *mm = new_mm(test);
	struct mm_struct *slot, *active_mm;
	struct counts before;

	kthread_use_mm(mm);
	KUNIT_EXPECT_EQ(test, set_cpus_allowed_ptr(current, cpumask_of(f->cpu[1])), 0);
	KUNIT_EXPECT_NULL(test, lazy_tlb_slot_of(f->cpu[1]));
	/* What ran at home after the thread had left was lazy on its mm. */
	expect_lazy_on(test, f->cpu[0], mm);
	make_lazy(f, 0, other);

	kthread_unuse_mm(mm);
	slot = lazy_tlb_slot_of(f->cpu[1]);
	active_mm = current->active_mm;
	KUNIT_EXPECT_PTR_EQ(test, slot, mm);
	KUNIT_EXPECT_PTR_EQ(test, active_mm, mm);
	expect_lazy_on(test, f->cpu[0], other);
	expect_count(test, mm, 1, 1);
	expect_count(test, other, 1, 1);

	before = count_now(f);
	mmput(mm);
	expect_drops(test, &before, 1, 0, 1);
	before = count_now(f);
	mmput(other);
	expect_drops(test, &before, 1, 1, 0);
	expect_dropped(test, f->cpu[0], other);

	KUNIT_EXPECT_EQ(test, set_cpus_allowed_ptr(current, cpumask_of(f->cpu[0])), 0);
}

#ifdef CONFIG_X86
/*
 * Stores to a word in memory, as the debug registers see them. Elsewhere a
 * watchpoint is hit before the store, which somebody would have to step over.
 */
static atomic_t stores;

static void store_seen(struct perf_event *event, struct perf_sample_data *data,
		       struct pt_regs *regs)
{
	atomic_inc(&stores);
}

/* Each is a trip to the idle task and back. */
#define NAPS	20

struct napper {
	struct kthread_work work;
	unsigned long switches;
	unsigned int stores;
};

/* The thread has an mm, and nothing else on its CPU has one. */
static void nap_fn(struct kthread_work *work)
{
	struct napper *napper = container_of(work, struct napper, work);
	unsigned long before = current->nvcsw + current->nivcsw;
	int i;

	atomic_set(&stores, 0);
	for (i = 0; i < NAPS; i++)
		schedule_timeout_uninterruptible(1);
	napper->stores = atomic_read(&stores);
	napper->switches = current->nvcsw + current->nivcsw - before;
}

/* What this is all about: nobody writes to mm_count. */
static void trips_write_mm_count_if_refcounted(struct kunit *test)
{
	struct perf_event * __percpu *watch;
	struct fixture *f = test->priv;
	struct mm_struct *mm = new_mm(test);
	struct perf_event_attr attr;
	struct napper napper = {};

	hw_breakpoint_init(&attr);
	attr.bp_addr = (unsigned long)&mm->mm_count;
	attr.bp_len = HW_BREAKPOINT_LEN_4;
	attr.bp_type = HW_BREAKPOINT_W;
	watch = register_wide_hw_breakpoint(&attr, store_seen, NULL);
	if (IS_ERR((void __force *)watch)) {
		mmput(mm);
		kunit_skip(test, "no debug register is free");
	}

	atomic_set(&stores, 0);
	mmgrab(mm);
	mmdrop(mm);
	if (atomic_read(&stores) != 2) {
		unregister_wide_hw_breakpoint(watch);
		mmput(mm);
		kunit_skip(test, "debug registers do not see atomic operations");
	}

	command(f->worker[1], use_fn, mm);
	kthread_init_work(&napper.work, nap_fn);
	kthread_queue_work(f->worker[1], &napper.work);
	kthread_flush_work(&napper.work);
	command(f->worker[1], unuse_fn, mm);
	unregister_wide_hw_breakpoint(watch);

	KUNIT_EXPECT_GE(test, napper.switches, NAPS);
	KUNIT_EXPECT_EQ(test, napper.stores,
			lazy_tlb_refcounted() ? 2 * napper.switches : 0);
	mmput(mm);
}
#endif

/* More than a thread gets through before it is sent away. */
#define ROAMER_MMS	64

/* Uses one new mm after the other. */
struct roamer {
	struct kthread_work work;
	struct kthread_work chase;
	struct task_struct *task;
	const struct cpumask *where;
	struct mm_struct *mm[ROAMER_MMS];
	unsigned int used;
};

static void roam_fn(struct kthread_work *work)
{
	struct roamer *roamer = container_of(work, struct roamer, work);
	unsigned int i;

	for (i = 0; i < ROAMER_MMS; i++) {
		kthread_use_mm(roamer->mm[i]);
		kthread_unuse_mm(roamer->mm[i]);
		WRITE_ONCE(roamer->used, i + 1);
	}
}

/* In front of whoever runs on this CPU: send the roamer away. */
static void chase_fn(struct kthread_work *work)
{
	struct roamer *roamer = container_of(work, struct roamer, chase);

	set_cpus_allowed_ptr(roamer->task, roamer->where);
}

/* Wait, without sleep, until the roamer has used that many mms. */
static bool wait_for_roamer(struct roamer *roamer, unsigned int used)
{
	unsigned long end = jiffies + PATIENCE * HZ;

	while (READ_ONCE(roamer->used) < used) {
		if (time_after(jiffies, end))
			return false;
		cond_resched();
		cpu_relax();
	}
	return true;
}

/*
 * A thread may be preempted anywhere in kthread_use_mm() and kthread_unuse_mm(),
 * and go on elsewhere. Whoever preempts it is lazy on its mm, and stays so: the
 * final drop must find that CPU. With interrupts disabled in there, a wakeup
 * arrives when they are enabled again, which is between the switch to the mm
 * and what comes after it. That is much of what the roamer does, and no CPU has
 * seen the mm before.
 */
static void use_mm_preempted_and_migrated(struct kunit *test)
{
	unsigned int round, i, here = 1, there = 2;
	struct fixture *f = test->priv;
	struct kthread_worker *worker;
	struct roamer *roamer;

	if (f->nr < 3)
		kunit_skip(test, "needs three online CPUs");

	roamer = kunit_kzalloc(test, sizeof(*roamer), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, roamer);
	worker = kthread_run_worker(0, "lazy_tlb_roamer");
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, worker);
	roamer->task = worker->task;
	sched_set_fifo(f->worker[here]->task);
	sched_set_fifo(f->worker[there]->task);

	for (round = 0; round < 12; round++) {
		for (i = 0; i < ROAMER_MMS; i++)
			roamer->mm[i] = new_mm(test);
		set_cpus_allowed_ptr(roamer->task, cpumask_of(f->cpu[here]));
		roamer->where = cpumask_of(f->cpu[there]);
		roamer->used = 0;
		kthread_init_work(&roamer->work, roam_fn);
		kthread_init_work(&roamer->chase, chase_fn);

		kthread_queue_work(worker, &roamer->work);
		KUNIT_EXPECT_TRUE(test, wait_for_roamer(roamer, 1 + round % 8));
		kthread_queue_work(f->worker[here], &roamer->chase);
		kthread_flush_work(&roamer->chase);
		kthread_flush_work(&roamer->work);

		for (i = 0; i < ROAMER_MMS; i++)
			mmput(roamer->mm[i]);
		if (!lazy_tlb_refcounted() && !policy_is("defer")) {
			KUNIT_EXPECT_NULL(test, lazy_tlb_slot_of(f->cpu[here]));
			KUNIT_EXPECT_NULL(test, lazy_tlb_slot_of(f->cpu[there]));
		}
		swap(here, there);
	}
	kthread_destroy_worker(worker);
}

/* ---- the final drop --------------------------------------------------- */

/* An mm that no CPU has borrowed goes without anybody being interrupted. */
static void no_cpu_is_lazy(struct kunit *test)
{
	struct fixture *f = test->priv;
	struct mm_struct *mm = new_mm(test);
	struct counts before;
	unsigned int i;

	for (i = 0; i < f->nr; i++)
		KUNIT_EXPECT_PTR_NE(test, lazy_tlb_slot_of(f->cpu[i]), mm);
	before = count_now(f);
	mmput(mm);
	expect_drops(test, &before, 1, 0, 0);
}

/* The CPU that drops the mm switches without an interrupt. */
static void this_cpu_is_lazy(struct kunit *test)
{
	struct fixture *f = test->priv;
	struct mm_struct *mm = new_mm(test);
	struct mm_struct *active_mm;
	struct counts before;

	kthread_use_mm(mm);
	KUNIT_EXPECT_NULL(test, lazy_tlb_slot_of(f->cpu[0]));
	kthread_unuse_mm(mm);
	active_mm = current->active_mm;
	KUNIT_EXPECT_PTR_EQ(test, active_mm, mm);
	KUNIT_EXPECT_PTR_EQ(test, lazy_tlb_slot_of(f->cpu[0]), mm);
	expect_count(test, mm, 1, 1);

	before = count_now(f);
	mmput(mm);
	expect_drops(test, &before, 1, 0, 1);
	/* Whether deferred or not, nothing stands in the way here. */
	active_mm = current->active_mm;
	if (lazy_tlb_refcounted()) {
		KUNIT_EXPECT_PTR_EQ(test, active_mm, mm);
		KUNIT_EXPECT_PTR_EQ(test, lazy_tlb_slot_of(f->cpu[0]), mm);
	} else {
		KUNIT_EXPECT_PTR_EQ(test, active_mm, &init_mm);
		KUNIT_EXPECT_NULL(test, lazy_tlb_slot_of(f->cpu[0]));
	}
}

/*
 * As many cross-calls as CPUs are lazy. One that was, and has taken another mm
 * since, is in mm_cpumask() of most architectures, but is left alone.
 */
static void every_lazy_cpu_is_found(struct kunit *test)
{
	struct fixture *f = test->priv;
	struct mm_struct *mm, *other;
	struct counts before;
	unsigned int lazy, i;

	for (lazy = 0; lazy < f->nr; lazy++) {
		mm = new_mm(test);
		other = new_mm(test);

		for (i = 1; i < f->nr; i++)
			make_lazy(f, i, mm);
		for (i = lazy + 1; i < f->nr; i++)
			make_lazy(f, i, other);
		expect_count(test, mm, 1, lazy);
		expect_count(test, other, 1, f->nr - 1 - lazy);

		before = count_now(f);
		mmput(mm);
		expect_drops(test, &before, 1, lazy, 0);
		for (i = 1; i <= lazy; i++)
			expect_dropped(test, f->cpu[i], mm);
		for (; i < f->nr; i++)
			expect_lazy_on(test, f->cpu[i], other);

		before = count_now(f);
		mmput(other);
		expect_drops(test, &before, 1, f->nr - 1 - lazy, 0);
	}
}

/* Where lazy CPUs count, the mm lives for as long as one of them keeps it. */
static void refcount_keeps_the_mm(struct kunit *test)
{
	struct fixture *f = test->priv;
	struct mm_struct *mm, *other;
	struct counts before;

	if (!lazy_tlb_refcounted())
		kunit_skip(test, "the policy does not count");

	mm = new_mm(test);
	other = new_mm(test);
	make_lazy(f, 1, mm);
	before = count_now(f);
	/* A reference to watch it with. */
	mmgrab(mm);
	mmput(mm);
	expect_count(test, mm, 1, 1);
	expect_lazy_on(test, f->cpu[1], mm);

	make_lazy(f, 1, other);
	expect_count(test, mm, 1, 0);
	expect_count(test, other, 1, 1);
	mmdrop(mm);
	mmput(other);
	expect_drops(test, &before, 0, 0, 0);
}

/* Wait for a number of final drops, which someone else does. */
static bool wait_for_drops(struct fixture *f, const struct counts *before,
			   unsigned long drops)
{
	unsigned long end = jiffies + PATIENCE * HZ;

	while (count_now(f).final_drops - before->final_drops < drops) {
		if (time_after(jiffies, end))
			return false;
		msleep(20);
	}
	return true;
}

/* Wait until a CPU is not lazy on an mm. */
static bool wait_for_slot(unsigned int cpu, struct mm_struct *mm)
{
	unsigned long end = jiffies + PATIENCE * HZ;

	while (lazy_tlb_slot_of(cpu) == mm) {
		if (time_after(jiffies, end))
			return false;
		msleep(20);
	}
	return true;
}

/*
 * With interrupts disabled nobody may be interrupted and waited for. The final
 * drop has to happen later, and the CPU stays lazy until then.
 */
static void irqs_off_drop_is_put_off(struct kunit *test)
{
	struct fixture *f = test->priv;
	struct mm_struct *at_drop;
	struct mm_struct *mm;
	struct counts before;

	if (lazy_tlb_refcounted())
		kunit_skip(test, "final drops do not wait where lazy CPUs count");

	mm = new_mm(test);
	make_lazy(f, 1, mm);
	mmgrab(mm);
	mmput(mm);
	expect_lazy_on(test, f->cpu[1], mm);

	before = count_now(f);
	/* The worker that does it is bound to this CPU: it cannot run yet. */
	local_irq_disable();
	mmdrop(mm);
	at_drop = lazy_tlb_slot_of(f->cpu[1]);
	local_irq_enable();
	KUNIT_EXPECT_PTR_EQ(test, at_drop, mm);

	KUNIT_EXPECT_TRUE(test, wait_for_drops(f, &before, 1));
	KUNIT_EXPECT_TRUE(test, wait_for_slot(f->cpu[1], mm));
	/* The worker may not have counted all of it yet. */
	msleep(100);
	expect_drops(test, &before, 1, 1, 0);
	expect_not_lazy(test, f->cpu[1]);
}

/* ---- deferring -------------------------------------------------------- */

static void skip_unless_defer(struct kunit *test)
{
	if (!policy_is("defer"))
		kunit_skip(test, "the policy is %s", lazy_tlb_policy_name());
}

/* A CPU lets go by itself before the time is up: no interrupt at all. */
static void deferred_mm_is_reaped(struct kunit *test)
{
	struct fixture *f = test->priv;
	struct mm_struct *mm, *other;
	struct counts before, now;
	unsigned long end;

	skip_unless_defer(test);
	mm = new_mm(test);
	other = new_mm(test);

	make_lazy(f, 1, mm);
	before = count_now(f);
	mmput(mm);
	now = count_now(f);
	KUNIT_EXPECT_EQ(test, now.deferred - before.deferred, 1);
	KUNIT_EXPECT_EQ(test, now.ipis - before.ipis, 0);
	KUNIT_EXPECT_EQ(test, now.reaped - before.reaped, 0);
	make_lazy(f, 1, other);

	end = jiffies + PATIENCE * HZ;
	do {
		msleep(20);
		now = count_now(f);
	} while (now.reaped == before.reaped && time_before(jiffies, end));
	KUNIT_EXPECT_EQ(test, now.reaped - before.reaped, 1);
	KUNIT_EXPECT_EQ(test, now.rounds - before.rounds, 0);
	KUNIT_EXPECT_EQ(test, now.round_ipis - before.round_ipis, 0);
	KUNIT_EXPECT_EQ(test, now.ipis - before.ipis, 0);
	expect_lazy_on(test, f->cpu[1], other);
	mmput(other);
}

/* Leave each other CPU lazy on an mm of its own, and drop those. */
static void defer_one_per_cpu(struct kunit *test, struct counts *before)
{
	struct fixture *f = test->priv;
	struct counts now;
	unsigned int i;

	*before = count_now(f);
	for (i = 1; i < f->nr; i++) {
		struct mm_struct *mm = new_mm(test);

		make_lazy(f, i, mm);
		mmput(mm);
	}
	now = count_now(f);
	KUNIT_EXPECT_EQ(test, now.deferred - before->deferred, f->nr - 1);
}

/* All of them were let go of because of interrupts, in a round. */
static void expect_round(struct kunit *test, const struct counts *before)
{
	struct fixture *f = test->priv;
	struct counts now = count_now(f);
	unsigned int i;

	for (i = 1; i < f->nr; i++)
		expect_not_lazy(test, f->cpu[i]);
	KUNIT_EXPECT_EQ(test, now.ipis - before->ipis, 0);
	KUNIT_EXPECT_EQ(test, now.reaped - before->reaped, 0);
	KUNIT_EXPECT_EQ(test, now.rounds - before->rounds, 1);
	/* The CPU that does it, if it is one of them, needs no interrupt. */
	KUNIT_EXPECT_LE(test, now.round_ipis - before->round_ipis, f->nr - 1);
	KUNIT_EXPECT_GE(test, now.round_ipis - before->round_ipis, f->nr - 2);
}

/* CPUs that do not let go in time are interrupted, all at once. */
static void deferred_mms_share_a_round(struct kunit *test)
{
	struct fixture *f = test->priv;
	struct counts before;
	unsigned long end;

	skip_unless_defer(test);
	defer_one_per_cpu(test, &before);
	end = jiffies + PATIENCE * HZ;
	while (count_now(f).rounds == before.rounds && time_before(jiffies, end))
		msleep(20);
	/* The worker may not have counted all of it yet. */
	msleep(100);
	expect_round(test, &before);
}

/* Nobody has to wait for the time to be up. */
static void deferred_mms_can_be_flushed(struct kunit *test)
{
	struct counts before;

	skip_unless_defer(test);
	defer_one_per_cpu(test, &before);
	lazy_tlb_flush_waiting();
	expect_round(test, &before);
}

/* Whoever is short of memory does not have to wait for the time to be up either. */
static void deferred_mms_yield_to_memory_pressure(struct kunit *test)
{
	struct fixture *f = test->priv;
	struct counts before;
	unsigned long start;
	int attempt;

	skip_unless_defer(test);
	/* After a second a scan would have done it: that would show nothing. */
	for (attempt = 0; attempt < 5; attempt++) {
		start = jiffies;
		defer_one_per_cpu(test, &before);
		KUNIT_EXPECT_EQ(test, lazy_tlb_nr_waiting(), f->nr - 1);
		drop_slab();
		while (lazy_tlb_nr_waiting() && time_before(jiffies, start + HZ))
			msleep(20);
		if (time_before(jiffies, start + HZ))
			break;
		lazy_tlb_flush_waiting();
	}
	KUNIT_EXPECT_LT(test, attempt, 5);
	KUNIT_EXPECT_EQ(test, lazy_tlb_nr_waiting(), 0);
	expect_round(test, &before);
}

static struct kunit_case lazy_tlb_test_cases[] = {
	KUNIT_CASE(unuse_mm_publishes),
	KUNIT_CASE(kernel_to_kernel_keeps_the_slot),
	KUNIT_CASE(use_mm_retires),
	KUNIT_CASE(unuse_mm_after_migration),
#ifdef CONFIG_X86
	KUNIT_CASE(trips_write_mm_count_if_refcounted),
#endif
	KUNIT_CASE_SLOW(use_mm_preempted_and_migrated),
	KUNIT_CASE(no_cpu_is_lazy),
	KUNIT_CASE(this_cpu_is_lazy),
	KUNIT_CASE(every_lazy_cpu_is_found),
	KUNIT_CASE(refcount_keeps_the_mm),
	KUNIT_CASE(irqs_off_drop_is_put_off),
	KUNIT_CASE_SLOW(deferred_mm_is_reaped),
	KUNIT_CASE_SLOW(deferred_mms_share_a_round),
	KUNIT_CASE(deferred_mms_can_be_flushed),
	KUNIT_CASE(deferred_mms_yield_to_memory_pressure),
	{}
};

static struct kunit_suite lazy_tlb_test_suite = {
	.name = "lazy_tlb",
	.init = lazy_tlb_test_init,
	.exit = lazy_tlb_test_exit,
	.test_cases = lazy_tlb_test_cases,
};

kunit_test_suite(lazy_tlb_test_suite);
