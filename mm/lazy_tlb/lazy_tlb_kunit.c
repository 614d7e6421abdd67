// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit tests of lazy TLB mms: what the slots and mm_count say while kernel
 * threads borrow an mm, and what the final drop does about CPUs that are lazy on
 * it, under each policy, and where the policy changes in between.
 *
 * They run at boot, before the first process. So no user task takes a CPU away
 * from the mm it is lazy on, and nobody else drops mms: that is why counters can
 * be compared exactly. CPUs neither come nor go.
 *
 * exit_mm(), exec_mmap() and sched_force_init_mm(), which need a user task or a CPU
 * that goes offline, are left to tools/testing/selftests/lazy_tlb.
 */
#include <kunit/test.h>
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/hw_breakpoint.h>
#include <linux/interrupt.h>
#include <linux/irq_work.h>
#include <linux/jiffies.h>
#include <linux/kthread.h>
#include <linux/lazy_tlb.h>
#include <linux/mm.h>
#include <linux/mm_types.h>
#include <linux/mmu_notifier.h>
#include <linux/page_ref.h>
#include <linux/perf_event.h>
#include <linux/pm_qos.h>
#include <linux/random.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/smp.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/vmstat.h>
#ifdef CONFIG_X86
#include <linux/cpufeature.h>
#include <linux/mmu_context.h>
#include <asm/tlbflush.h>
#endif

/* Enough to tell one from many; more only take longer. */
#define MAX_CPUS	8

/* Longer than anything that is waited for takes, in seconds. */
#define PATIENCE	20

struct fixture {
	/* cpu[0] is home, where the test runs; the others can be made lazy. */
	unsigned int nr;
	unsigned int cpu[MAX_CPUS];
	struct kthread_worker *worker[MAX_CPUS];
	/* What CPUs are lazy on that shall not be lazy on anything else. */
	struct mm_struct *park;
	struct pm_qos_request awake;
	unsigned long before[NR_VM_EVENT_ITEMS];
	unsigned long now[NR_VM_EVENT_ITEMS];
	const char *boot_policy;
};

/* Wait for something that others do soon. */
#define wait_for(condition) ({						\
	unsigned long end_ = jiffies + PATIENCE * HZ;			\
	bool met_;							\
									\
	for (;;) {							\
		met_ = (condition);					\
		if (met_ || time_after(jiffies, end_))			\
			break;						\
		schedule_timeout_uninterruptible(1);			\
	}								\
	met_;								\
})

/* ---- policies --------------------------------------------------------- */

static const char * const policies[] = { "shootdown", "handover", "refcount" };

static void set_policy(struct kunit *test, const char *name)
{
	KUNIT_ASSERT_EQ(test, lazy_tlb_change_policy(name), 0);
	KUNIT_ASSERT_STREQ(test, lazy_tlb_policy_name(), name);
}

/* By their names: what the policies themselves say is to be tested. */
static bool counted_by(const char *policy)
{
	return !strcmp(policy, "refcount");
}

static bool shoots(void)
{
	return !strcmp(lazy_tlb_policy_name(), "shootdown");
}

/* How a CPU has become lazy on an mm, and what came after that. */
struct trip {
	const char *borrow;	/* the policy then */
	const char *now;	/* the policy when something happens to it */
	bool dropped;		/* by everybody else, before the policy changed */
};

static const struct trip trips[] = {
	/* One policy all the time. */
	{ "shootdown", "shootdown" },
	{ "handover", "handover" },
	{ "refcount", "refcount" },
	/* It changes. */
	{ "shootdown", "handover" },
	{ "shootdown", "refcount" },
	{ "handover", "shootdown" },
	{ "handover", "refcount" },
	{ "refcount", "shootdown" },
	{ "refcount", "handover" },
	/* The mm is dropped. With shootdown, nobody would be lazy any more. */
	{ "handover", "shootdown", true },
	{ "handover", "handover", true },
	{ "handover", "refcount", true },
	{ "refcount", "shootdown", true },
	{ "refcount", "handover", true },
	{ "refcount", "refcount", true },
};

static void describe_trip(const struct trip *trip, char *desc)
{
	snprintf(desc, KUNIT_PARAM_DESC_SIZE, "%s, %s%s", trip->borrow,
		 trip->dropped ? "dropped, " : "", trip->now);
}

KUNIT_ARRAY_PARAM(trip, trips, describe_trip);

/* Only the first ones: nobody has dropped the mm, or the policy stays the same. */
static const void *borrow_gen_params(struct kunit *test, const void *prev, char *desc)
{
	return prev == &trips[8] ? NULL : trip_gen_params(test, prev, desc);
}

static const void *policy_gen_params(struct kunit *test, const void *prev, char *desc)
{
	return prev == &trips[2] ? NULL : trip_gen_params(test, prev, desc);
}

/* For a test of one policy. */
static const char *set_the_policy(struct kunit *test)
{
	const struct trip *trip = test->param_value;

	set_policy(test, trip->borrow);
	return trip->borrow;
}

/* Whether each CPU that is lazy holds a reference: it has counted, or was handed one. */
static bool holds(const struct trip *trip)
{
	return trip->dropped || counted_by(trip->borrow);
}

/* ---- counters --------------------------------------------------------- */

static void count_from_here(struct fixture *f)
{
	all_vm_events(f->before);
}

static unsigned long counted(struct fixture *f, enum vm_event_item item)
{
	all_vm_events(f->now);
	return f->now[item] - f->before[item];
}

/*
 * What was counted must be @drops final drops, of mms that @remote other CPUs and
 * @local times the dropping CPU itself were lazy on without being counted.
 */
static void expect_drops(struct kunit *test, unsigned long drops,
			 unsigned long remote, unsigned long local)
{
	struct fixture *f = test->priv;

	KUNIT_EXPECT_EQ(test, counted(f, LAZY_TLB_FINAL_DROPS), drops);
	KUNIT_EXPECT_EQ(test, counted(f, LAZY_TLB_HANDED), remote + local);
	KUNIT_EXPECT_GE(test, counted(f, LAZY_TLB_SCANNED), remote + local);
	KUNIT_EXPECT_EQ(test, counted(f, LAZY_TLB_NUDGED), shoots() ? remote : 0);
}

/* ---- mms -------------------------------------------------------------- */

/*
 * Whether an mm has been freed is told by a reference on the page that is its
 * pgd: it is the only one then. Where pgds come from a slab cache, nobody knows.
 */
static struct page *pgds[128];
static unsigned int nr_pgds;

/* How many of those that new_mm() has returned are there. */
static unsigned int nr_mms(void)
{
	unsigned int i, nr = 0;

	for (i = 0; i < nr_pgds; i++)
		nr += page_ref_count(pgds[i]) > 1;
	return nr;
}

static void forget_mms(void)
{
	while (nr_pgds) {
		struct page *page = pgds[--nr_pgds];

		__free_pages(page, compound_order(page));
	}
}

static struct mm_struct *new_mm_with_user(struct kunit *test)
{
	struct mm_struct *mm = mm_alloc();
	struct page *page;

	KUNIT_ASSERT_NOT_NULL(test, mm);
	page = virt_to_head_page(mm->pgd);
	if (!PageSlab(page) && nr_pgds < ARRAY_SIZE(pgds)) {
		page_ref_inc(page);
		pgds[nr_pgds++] = page;
	}
	return mm;
}

/* An mm without users: only its final drop is still to come. */
static void end_user(struct mm_struct *mm)
{
	mmgrab(mm);
	mmput(mm);
}

/*
 * No CPU is lazy on the mm when its user ends. Otherwise exit_mmap() could make it
 * let go by a flush, as it does on x86 with PTI and four levels of page tables.
 */
static struct mm_struct *new_mm(struct kunit *test)
{
	struct mm_struct *mm = new_mm_with_user(test);

	end_user(mm);
	return mm;
}

/* @nr of those that new_mm() has returned are there, and no more are freed. */
static void expect_mms(struct kunit *test, unsigned int nr)
{
	if (!nr_pgds)
		return;
	wait_for(nr_mms() <= nr);
	KUNIT_EXPECT_EQ(test, nr_mms(), nr);
	if (!nr)
		forget_mms();
}

/* ---- other CPUs ------------------------------------------------------- */

/* Something that a kernel thread does on its CPU. */
struct order {
	struct kthread_work work;
	void (*fn)(struct order *order);
	struct mm_struct *mm;
	struct mm_struct *active_mm;
	unsigned long slot;
	/* Of @mm, while the thread runs: asleep, it leaves its CPU lazy. */
	int count;
	/* For those that take longer. */
	struct fixture *f;
	atomic_t *ready;
	unsigned int delay;
	unsigned int naps;
	int stores;
	bool runs;
	bool go;
	bool got_it;
};

static unsigned long raw_slot(unsigned int cpu)
{
	return READ_ONCE(*per_cpu_ptr(&lazy_tlb_slot, cpu));
}

static void use_fn(struct order *order)
{
	kthread_use_mm(order->mm);
	order->count = atomic_read(&order->mm->mm_count);
}

static void unuse_fn(struct order *order)
{
	kthread_unuse_mm(order->mm);
}

static void look_fn(struct order *order)
{
}

static void order_fn(struct kthread_work *work)
{
	struct order *order = container_of(work, struct order, work);

	order->fn(order);
	order->slot = raw_slot(smp_processor_id());
	order->active_mm = current->active_mm;
}

static void start(struct kthread_worker *worker, struct order *order,
		  void (*fn)(struct order *order), struct mm_struct *mm)
{
	*order = (struct order) { .fn = fn, .mm = mm };
	kthread_init_work(&order->work, order_fn);
	kthread_queue_work(worker, &order->work);
}

/* The thread is bound to its CPU. Returns when it is done. */
static struct order command(struct kthread_worker *worker,
			    void (*fn)(struct order *order), struct mm_struct *mm)
{
	struct order order;

	start(worker, &order, fn, mm);
	kthread_flush_work(&order.work);
	return order;
}

/* Leave a CPU lazy on @mm, whatever it was lazy on before. */
static void make_lazy(struct fixture *f, unsigned int i, struct mm_struct *mm)
{
	command(f->worker[i], use_fn, mm);
	command(f->worker[i], unuse_fn, mm);
}

static void make_all_lazy(struct fixture *f, struct mm_struct *mm)
{
	unsigned int i;

	for (i = 0; i < f->nr; i++)
		make_lazy(f, i, mm);
}

static void look_ipi(void *active_mm)
{
	*(struct mm_struct **)active_mm = current->active_mm;
}

/* Ask the CPU itself, in an interrupt. */
static struct mm_struct *active_mm_of(unsigned int cpu)
{
	struct mm_struct *active_mm = NULL;

	smp_call_function_single(cpu, look_ipi, &active_mm, true);
	return active_mm;
}

/* The CPU is lazy on @mm as @trip says, and may follow it. */
static void expect_lazy(struct kunit *test, unsigned int cpu, struct mm_struct *mm,
			const struct trip *trip)
{
	unsigned long want = (unsigned long)mm;

	if (counted_by(trip->borrow))
		want = 0;
	else if (trip->dropped)
		want |= LAZY_TLB_SLOT_HANDED;
	KUNIT_EXPECT_EQ(test, raw_slot(cpu), want);
	KUNIT_EXPECT_PTR_EQ(test, active_mm_of(cpu), mm);
}

/* Not lazy on anything, that is: it has init_mm. Soon, not at once. */
static void expect_let_go(struct kunit *test, unsigned int cpu)
{
	KUNIT_EXPECT_TRUE(test, wait_for(!raw_slot(cpu)));
	KUNIT_EXPECT_PTR_EQ(test, active_mm_of(cpu), &init_mm);
}

/* What becomes of another CPU that was lazy on @mm when it was dropped. */
static void expect_after_drop(struct kunit *test, unsigned int cpu, struct mm_struct *mm)
{
	struct trip dropped = { .borrow = lazy_tlb_policy_name(), .dropped = true };

	if (shoots())
		expect_let_go(test, cpu);
	else
		expect_lazy(test, cpu, mm, &dropped);
}

/* ---- before and after each test --------------------------------------- */

static int lazy_tlb_test_init(struct kunit *test)
{
	unsigned int cpu;
	struct fixture *f;

	f = kunit_kzalloc(test, sizeof(*f), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, f);
	if (num_online_cpus() < 2)
		kunit_skip(test, "needs two online CPUs");
#ifdef CONFIG_X86
	if (boot_cpu_has(X86_FEATURE_XENPV))
		kunit_skip(test, "Xen PV wants to be told of an mm before it is used");
#endif

	test->priv = f;
	f->boot_policy = lazy_tlb_policy_name();
	/* Deep idle states of some machines load something else. */
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
	f->park = mm_alloc();
	KUNIT_ASSERT_NOT_NULL(test, f->park);
	make_all_lazy(f, f->park);
	return set_cpus_allowed_ptr(current, cpumask_of(f->cpu[0]));
}

/* No test may leave an mm behind, nor free one twice. */
static void lazy_tlb_test_exit(struct kunit *test)
{
	struct fixture *f = test->priv;

	if (!f)
		return;
	if (f->park) {
		make_all_lazy(f, f->park);
		expect_mms(test, 0);
		forget_mms();
		mmdrop(f->park);
	}
	lazy_tlb_change_policy(f->boot_policy);
	while (f->nr)
		kthread_destroy_worker(f->worker[--f->nr]);
	cpu_latency_qos_remove_request(&f->awake);
}

/* ---- the slots -------------------------------------------------------- */

/* One CPU becomes lazy on a new mm, as @trip says. */
static struct mm_struct *begin(struct kunit *test, const struct trip *trip)
{
	struct trip fresh = { .borrow = trip->borrow };
	struct fixture *f = test->priv;
	struct mm_struct *mm = new_mm(test);
	struct order order;

	set_policy(test, trip->borrow);
	/* While the thread has the mm it is no borrower, but a user. */
	order = command(f->worker[1], use_fn, mm);
	KUNIT_EXPECT_EQ(test, order.slot, 0);
	KUNIT_EXPECT_EQ(test, order.count, 2);
	command(f->worker[1], unuse_fn, mm);
	expect_lazy(test, f->cpu[1], mm, &fresh);
	KUNIT_EXPECT_EQ(test, atomic_read(&mm->mm_count), 1 + holds(&fresh));

	if (trip->dropped)
		mmdrop(mm);
	set_policy(test, trip->now);
	expect_lazy(test, f->cpu[1], mm, trip);
	KUNIT_EXPECT_EQ(test, atomic_read(&mm->mm_count), !trip->dropped + holds(trip));
	return mm;
}

/* The CPU is not lazy on @mm any more, and has dropped what it held. */
static void end(struct kunit *test, const struct trip *trip, struct mm_struct *mm)
{
	if (!trip->dropped) {
		KUNIT_EXPECT_EQ(test, atomic_read(&mm->mm_count), 1);
		mmdrop(mm);
	}
	expect_mms(test, 0);
}

/* Kernel threads come and go on a lazy CPU: they inherit what it is lazy on. */
static void kernel_to_kernel_keeps_the_slot(struct kunit *test)
{
	const struct trip *trip = test->param_value;
	struct mm_struct *mm = begin(test, trip);
	struct fixture *f = test->priv;
	struct kthread_worker *second;
	struct order order;
	int i;

	second = kthread_run_worker_on_cpu(f->cpu[1], 0, "lazy_tlb_2nd/%u");
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, second);
	for (i = 0; i < 100; i++) {
		order = command(i & 1 ? f->worker[1] : second, look_fn, NULL);
		KUNIT_ASSERT_PTR_EQ(test, order.active_mm, mm);
	}
	expect_lazy(test, f->cpu[1], mm, trip);
	KUNIT_EXPECT_EQ(test, atomic_read(&mm->mm_count), !trip->dropped + holds(trip));
	kthread_destroy_worker(second);
	make_lazy(f, 1, f->park);
	end(test, trip, mm);
}

/* A thread that takes an mm of its own ends what the CPU was lazy on. */
static void use_mm_returns(struct kunit *test)
{
	const struct trip *trip = test->param_value;
	struct mm_struct *mm = begin(test, trip);
	struct fixture *f = test->priv;

	KUNIT_EXPECT_EQ(test, command(f->worker[1], use_fn, f->park).slot, 0);
	end(test, trip, mm);
	command(f->worker[1], unuse_fn, f->park);
}

/* The same, if that is the mm which the CPU is lazy on. */
static void use_mm_returns_the_same(struct kunit *test)
{
	const struct trip *trip = test->param_value;
	struct trip again = { .borrow = trip->now };
	struct mm_struct *mm = begin(test, trip);
	struct fixture *f = test->priv;
	struct order order;

	order = command(f->worker[1], use_fn, mm);
	KUNIT_EXPECT_EQ(test, order.slot, 0);
	KUNIT_EXPECT_EQ(test, order.count, 2);
	command(f->worker[1], unuse_fn, mm);
	expect_lazy(test, f->cpu[1], mm, &again);
	KUNIT_EXPECT_EQ(test, atomic_read(&mm->mm_count), 1 + holds(&again));
	make_lazy(f, 1, f->park);
	end(test, trip, mm);
}

struct let_go {
	struct mm_struct *mm;
	struct mm_struct *active_mm;
	unsigned long slot;
	unsigned int mms;
	bool done;
	bool again;
};

static void let_go_ipi(void *arg)
{
	struct let_go *let_go = arg;

	let_go->done = lazy_tlb_let_go(let_go->mm);
	let_go->active_mm = current->active_mm;
	let_go->slot = raw_slot(smp_processor_id());
	let_go->mms = nr_mms();
	let_go->again = lazy_tlb_let_go(let_go->mm);
}

/* An interrupt makes the CPU let go, and frees nothing itself. */
static void let_go_returns(struct kunit *test)
{
	const struct trip *trip = test->param_value;
	struct let_go let_go = { .mm = begin(test, trip) };
	struct fixture *f = test->priv;

	smp_call_function_single(f->cpu[1], let_go_ipi, &let_go, true);
	KUNIT_EXPECT_TRUE(test, let_go.done);
	KUNIT_EXPECT_PTR_EQ(test, let_go.active_mm, &init_mm);
	KUNIT_EXPECT_EQ(test, let_go.slot, 0);
	KUNIT_EXPECT_EQ(test, let_go.mms, nr_pgds);
	KUNIT_EXPECT_FALSE(test, let_go.again);
	expect_let_go(test, f->cpu[1]);
	end(test, trip, let_go.mm);
}

/* A CPU is asked to let go of what it was handed, not of anything else. */
static void nudge_asks_for_what_was_handed(struct kunit *test)
{
	const struct trip *trip = test->param_value;
	struct mm_struct *mm = begin(test, trip);
	struct fixture *f = test->priv;

	preempt_disable();
	lazy_tlb_nudge(f->cpu[1]);
	preempt_enable();
	if (trip->dropped && !counted_by(trip->borrow)) {
		expect_let_go(test, f->cpu[1]);
	} else {
		schedule_timeout_uninterruptible(HZ / 20);
		expect_lazy(test, f->cpu[1], mm, trip);
		make_lazy(f, 1, f->park);
	}
	end(test, trip, mm);
}

/* The CPU that becomes lazy is the one where the thread gives the mm back. */
static void unuse_mm_after_migration(struct kunit *test)
{
	const struct trip *trip = test->param_value;
	struct trip fresh = { .borrow = trip->borrow }, later = { .borrow = trip->now };
	struct mm_struct *other = new_mm(test), *mm = new_mm(test);
	struct fixture *f = test->priv;

	set_policy(test, trip->borrow);
	kthread_use_mm(mm);
	KUNIT_EXPECT_EQ(test, set_cpus_allowed_ptr(current, cpumask_of(f->cpu[1])), 0);
	KUNIT_EXPECT_EQ(test, raw_slot(f->cpu[1]), 0);
	/* What ran at home after the thread had left was lazy on its mm. */
	expect_lazy(test, f->cpu[0], mm, &fresh);
	KUNIT_EXPECT_EQ(test, atomic_read(&mm->mm_count), 2 + holds(&fresh));
	set_policy(test, trip->now);
	make_lazy(f, 0, other);
	KUNIT_EXPECT_EQ(test, atomic_read(&mm->mm_count), 2);

	kthread_unuse_mm(mm);
	expect_lazy(test, f->cpu[1], mm, &later);
	expect_lazy(test, f->cpu[0], other, &later);
	KUNIT_EXPECT_EQ(test, atomic_read(&mm->mm_count), 1 + holds(&later));
	KUNIT_EXPECT_EQ(test, atomic_read(&other->mm_count), 1 + holds(&later));
	KUNIT_EXPECT_EQ(test, set_cpus_allowed_ptr(current, cpumask_of(f->cpu[0])), 0);
	mmdrop(mm);
	mmdrop(other);
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

/* The thread has an mm, and nothing else on its CPU has one. Returns the trips. */
static void nap_fn(struct order *order)
{
	unsigned long before = current->nvcsw + current->nivcsw;
	int i;

	order->naps = 0;
	atomic_set(&stores, 0);
	/* A timer that is faster than the way to sleep makes no trip. */
	for (i = 0; i < 10 * NAPS && order->naps < NAPS; i++) {
		schedule_timeout_uninterruptible(1);
		order->naps = current->nvcsw + current->nivcsw - before;
	}
	order->stores = atomic_read(&stores);
}

/* What this is all about: nobody writes to mm_count. */
static void trips_write_mm_count_if_refcounted(struct kunit *test)
{
	const char *policy = set_the_policy(test);
	struct perf_event * __percpu *watch;
	struct fixture *f = test->priv;
	struct perf_event_attr attr;
	struct mm_struct *mm = new_mm(test);
	struct order order;

	hw_breakpoint_init(&attr);
	attr.bp_addr = (unsigned long)&mm->mm_count;
	attr.bp_len = HW_BREAKPOINT_LEN_4;
	attr.bp_type = HW_BREAKPOINT_W;
	watch = register_wide_hw_breakpoint(&attr, store_seen, NULL);
	if (IS_ERR((void __force *)watch)) {
		mmdrop(mm);
		kunit_skip(test, "no debug register is free");
	}

	atomic_set(&stores, 0);
	mmgrab(mm);
	mmdrop(mm);
	if (atomic_read(&stores) != 2) {
		unregister_wide_hw_breakpoint(watch);
		mmdrop(mm);
		kunit_skip(test, "debug registers do not see atomic operations");
	}

	command(f->worker[1], use_fn, mm);
	order = command(f->worker[1], nap_fn, mm);
	KUNIT_EXPECT_GE(test, order.naps, NAPS);
	KUNIT_EXPECT_EQ(test, order.stores, counted_by(policy) ? 2 * order.naps : 0);
	command(f->worker[1], unuse_fn, mm);
	unregister_wide_hw_breakpoint(watch);
	mmdrop(mm);
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

/* The CPU is lazy on nothing that was dropped. */
static bool is_done(struct fixture *f, unsigned int cpu)
{
	unsigned long slot = raw_slot(cpu);

	return !slot || slot == (unsigned long)f->park;
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

	set_the_policy(test);
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
			mmdrop(roamer->mm[i]);
		/* The roamer may have been done before it was sent away. */
		if (shoots()) {
			KUNIT_EXPECT_TRUE(test, wait_for(is_done(f, f->cpu[here])));
			KUNIT_EXPECT_TRUE(test, wait_for(is_done(f, f->cpu[there])));
		}
		make_lazy(f, here, f->park);
		make_lazy(f, there, f->park);
		expect_mms(test, 0);
		swap(here, there);
	}
	kthread_destroy_worker(worker);
}

/* ---- the final drop --------------------------------------------------- */

/* The CPU that drops the mm keeps it until it switches, whatever the policy. */
static void this_cpu_is_lazy(struct kunit *test)
{
	const char *policy = set_the_policy(test);
	struct trip dropped = { .borrow = policy, .dropped = true };
	struct fixture *f = test->priv;
	struct mm_struct *mm = new_mm(test);

	kthread_use_mm(mm);
	kthread_unuse_mm(mm);
	count_from_here(f);
	mmdrop(mm);
	expect_drops(test, !counted_by(policy), 0, !counted_by(policy));
	KUNIT_EXPECT_EQ(test, atomic_read(&mm->mm_count), 1);
	/* It has been asked for nothing that comes later. */
	schedule_timeout_uninterruptible(HZ / 20);
	expect_lazy(test, f->cpu[0], mm, &dropped);
	expect_mms(test, 1);
	make_lazy(f, 0, f->park);
	expect_mms(test, 0);
}

/*
 * As many are handed a reference as are lazy, from none to all others, and not
 * one that was, and has taken another mm since. Who has counted needs none: then
 * the mm is dropped when the last of those has returned it.
 */
static void every_lazy_cpu_is_found(struct kunit *test)
{
	const struct trip *trip = test->param_value;
	struct trip fresh = { .borrow = trip->borrow };
	bool counts = counted_by(trip->borrow);
	struct fixture *f = test->priv;
	struct mm_struct *mm, *other;
	unsigned int lazy, i;

	for (lazy = 0; lazy < f->nr; lazy++) {
		set_policy(test, trip->borrow);
		mm = new_mm(test);
		other = new_mm(test);
		for (i = 1; i < f->nr; i++)
			make_lazy(f, i, mm);
		for (i = lazy + 1; i < f->nr; i++)
			make_lazy(f, i, other);
		KUNIT_EXPECT_EQ(test, atomic_read(&mm->mm_count), 1 + (counts ? lazy : 0));
		set_policy(test, trip->now);

		count_from_here(f);
		mmdrop(mm);
		expect_drops(test, !counts || !lazy, counts ? 0 : lazy, 0);
		for (i = 1; i <= lazy; i++) {
			if (!counts && shoots())
				expect_let_go(test, f->cpu[i]);
			else
				KUNIT_EXPECT_PTR_EQ(test, active_mm_of(f->cpu[i]), mm);
		}
		for (; i < f->nr; i++)
			expect_lazy(test, f->cpu[i], other, &fresh);
		make_all_lazy(f, f->park);
		expect_mms(test, 1);
		KUNIT_EXPECT_EQ(test, atomic_read(&other->mm_count), 1);
		mmdrop(other);
		expect_mms(test, 0);
	}
}

/* An mm lives as long as a CPU is lazy on it, and not longer. */
static void last_cpu_frees_the_mm(struct kunit *test)
{
	const char *policy = set_the_policy(test);
	struct trip dropped = { .borrow = policy, .dropped = true };
	struct fixture *f = test->priv;
	struct mm_struct *mm = new_mm(test);
	unsigned int i;

	make_all_lazy(f, mm);
	mmdrop(mm);
	if (shoots()) {
		for (i = 1; i < f->nr; i++)
			expect_let_go(test, f->cpu[i]);
		/* All but this one. */
		KUNIT_EXPECT_TRUE(test, wait_for(atomic_read(&mm->mm_count) == 1));
		expect_lazy(test, f->cpu[0], mm, &dropped);
	}
	count_from_here(f);
	for (i = f->nr; i--; ) {
		if (!shoots()) {
			KUNIT_EXPECT_EQ(test, atomic_read(&mm->mm_count), i + 1);
			expect_lazy(test, f->cpu[i], mm, &dropped);
		}
		expect_mms(test, 1);
		make_lazy(f, i, f->park);
	}
	expect_mms(test, 0);
	/* The count was zero again then: that is not a final drop. */
	expect_drops(test, counted_by(policy), 0, 0);
}

/* One CPU has counted, the other has not: the first one drops, then the other. */
static void counted_and_not(struct kunit *test)
{
	const char *policy = set_the_policy(test);
	struct fixture *f = test->priv;
	struct mm_struct *mm = new_mm(test);

	if (f->nr < 3)
		kunit_skip(test, "needs three online CPUs");

	set_policy(test, "refcount");
	make_lazy(f, 1, mm);
	set_policy(test, "shootdown");
	make_lazy(f, 2, mm);
	set_policy(test, policy);
	count_from_here(f);
	mmdrop(mm);
	expect_drops(test, 0, 0, 0);
	KUNIT_EXPECT_EQ(test, atomic_read(&mm->mm_count), 1);

	make_lazy(f, 1, f->park);
	expect_drops(test, 1, 1, 0);
	if (shoots()) {
		expect_let_go(test, f->cpu[2]);
	} else {
		KUNIT_EXPECT_EQ(test, raw_slot(f->cpu[2]),
				(unsigned long)mm | LAZY_TLB_SLOT_HANDED);
		expect_mms(test, 1);
	}
	make_lazy(f, 2, f->park);
	expect_mms(test, 0);
}

/* ---- wherever the final drop is --------------------------------------- */

static DEFINE_RAW_SPINLOCK(some_lock);
static struct mm_struct *to_drop;
static bool dropped_it;

static void drop_it(void)
{
	mmdrop(to_drop);
	WRITE_ONCE(dropped_it, true);
}

static void drop_in_tasklet(struct tasklet_struct *tasklet)
{
	drop_it();
}

static void drop_in_irq_work(struct irq_work *work)
{
	drop_it();
}

static DECLARE_TASKLET(dropping_tasklet, drop_in_tasklet);
static struct irq_work dropping_irq_work = IRQ_WORK_INIT_HARD(drop_in_irq_work);

enum context { TASK, WITH_BH_OFF, WITH_IRQS_OFF, SPINLOCK, SOFTIRQ, HARDIRQ, NR_CONTEXTS };

static void drop_in(enum context context)
{
	dropped_it = false;
	switch (context) {
	case WITH_BH_OFF:
		local_bh_disable();
		drop_it();
		local_bh_enable();
		break;
	case WITH_IRQS_OFF:
		local_irq_disable();
		drop_it();
		local_irq_enable();
		break;
	case SPINLOCK:
		raw_spin_lock(&some_lock);
		drop_it();
		raw_spin_unlock(&some_lock);
		break;
	case SOFTIRQ:
		tasklet_schedule(&dropping_tasklet);
		break;
	case HARDIRQ:
		irq_work_queue(&dropping_irq_work);
		break;
	default:
		drop_it();
	}
	wait_for(READ_ONCE(dropped_it));
}

/* The CPU that drops is lazy as well, so that nothing is freed there. */
static void drop_in_any_context(struct kunit *test)
{
	const char *policy = set_the_policy(test);
	struct trip dropped = { .borrow = policy, .dropped = true };
	bool counts = counted_by(policy);
	struct fixture *f = test->priv;
	enum context context;

	for (context = 0; context < NR_CONTEXTS; context++) {
		to_drop = new_mm(test);
		make_lazy(f, 0, to_drop);
		make_lazy(f, 1, to_drop);
		count_from_here(f);
		drop_in(context);
		expect_drops(test, !counts, !counts, !counts);
		expect_lazy(test, f->cpu[0], to_drop, &dropped);
		expect_after_drop(test, f->cpu[1], to_drop);
		make_all_lazy(f, f->park);
		expect_mms(test, 0);
	}
}

#ifdef CONFIG_MMU_NOTIFIER
static void free_nothing(struct mmu_notifier *subscription)
{
}

static const struct mmu_notifier_ops no_ops = { .free_notifier = free_nothing };
static struct mmu_notifier subscription;

/* A subscription holds on to the mm. It is given up by a callback of SRCU, on some CPU. */
static void drop_by_mmu_notifier(struct kunit *test)
{
	bool counts = counted_by(set_the_policy(test));
	struct fixture *f = test->priv;
	struct mm_struct *mm = new_mm_with_user(test);

	subscription = (struct mmu_notifier) { .ops = &no_ops };
	KUNIT_ASSERT_EQ(test, mmu_notifier_register(&subscription, mm), 0);
	end_user(mm);
	make_lazy(f, 1, mm);
	mmdrop(mm);
	KUNIT_EXPECT_EQ(test, atomic_read(&mm->mm_count), 1 + counts);

	count_from_here(f);
	mmu_notifier_put(&subscription);
	if (counts)
		KUNIT_EXPECT_TRUE(test, wait_for(atomic_read(&mm->mm_count) == 1));
	else
		KUNIT_EXPECT_TRUE(test, wait_for(counted(f, LAZY_TLB_FINAL_DROPS)));
	KUNIT_EXPECT_EQ(test, counted(f, LAZY_TLB_FINAL_DROPS), !counts);
	KUNIT_EXPECT_EQ(test, counted(f, LAZY_TLB_HANDED), !counts);
	make_all_lazy(f, f->park);
	expect_mms(test, 0);
}
#endif

/* Waits for a lock, deaf to interrupts. */
static void wait_fn(struct order *order)
{
	unsigned long flags;
	int i;

	local_irq_save(flags);
	WRITE_ONCE(order->runs, true);
	/* Two seconds: if that is not enough, the other one waits as well. */
	for (i = 0; i < 400000 && !order->got_it; i++) {
		order->got_it = raw_spin_trylock(&some_lock);
		udelay(5);
	}
	if (order->got_it)
		raw_spin_unlock(&some_lock);
	local_irq_restore(flags);
}

/* Who drops may hold a lock that the lazy CPU waits for. */
static void drop_waits_for_nobody(struct kunit *test)
{
	struct fixture *f = test->priv;
	struct order waiter;
	struct mm_struct *mm;
	unsigned int again;

	set_the_policy(test);
	/* The second nudge comes while the first one is pending. */
	for (again = 0; again < 2; again++) {
		mm = new_mm(test);
		make_lazy(f, 1, mm);
		raw_spin_lock(&some_lock);
		start(f->worker[1], &waiter, wait_fn, NULL);
		while (!READ_ONCE(waiter.runs))
			cpu_relax();
		if (again && shoots())
			lazy_tlb_nudge(f->cpu[1]);
		mmdrop(mm);
		raw_spin_unlock(&some_lock);
		kthread_flush_work(&waiter.work);
		KUNIT_EXPECT_TRUE(test, waiter.got_it);
		expect_after_drop(test, f->cpu[1], mm);
	}
}

/* Gives up its mm when it is told to. */
static void unuse_later_fn(struct order *order)
{
	WRITE_ONCE(order->runs, true);
	while (!READ_ONCE(order->go))
		cpu_relax();
	kthread_unuse_mm(order->mm);
}

/* Who holds the pi_lock of another task may use its mm: it is not given up meanwhile. */
static void mm_is_given_up_under_pi_lock(struct kunit *test)
{
	struct mm_struct *mm = new_mm(test), *before, *after;
	struct fixture *f = test->priv;
	struct task_struct *task;
	struct order order;
	unsigned long flags;

	command(f->worker[1], use_fn, mm);
	task = f->worker[1]->task;
	start(f->worker[1], &order, unuse_later_fn, mm);
	KUNIT_EXPECT_TRUE(test, wait_for(READ_ONCE(order.runs)));

	raw_spin_lock_irqsave(&task->pi_lock, flags);
	before = READ_ONCE(task->mm);
	WRITE_ONCE(order.go, true);
	mdelay(10);
	after = READ_ONCE(task->mm);
	raw_spin_unlock_irqrestore(&task->pi_lock, flags);
	kthread_flush_work(&order.work);

	KUNIT_EXPECT_PTR_EQ(test, before, mm);
	KUNIT_EXPECT_PTR_EQ(test, after, mm);
	KUNIT_EXPECT_NULL(test, READ_ONCE(task->mm));
	make_lazy(f, 1, f->park);
	mmdrop(mm);
}

/* ---- all at once ------------------------------------------------------ */

#define RACES	200
#define RACERS	3

static void get_set_go(atomic_t *ready, unsigned int delay)
{
	atomic_dec(ready);
	while (atomic_read(ready) > 0)
		cpu_relax();
	while (delay--)
		cpu_relax();
}

/* Becomes lazy on @mm, and returns it when it is told to go, a little later. */
static void race_fn(struct order *order)
{
	/* Pairs with smp_store_release() in the test below. */
	while (!smp_load_acquire(&order->go))
		cpu_relax();
	kthread_use_mm(order->mm);
	kthread_unuse_mm(order->mm);
	get_set_go(order->ready, order->delay);
	kthread_use_mm(order->f->park);
	kthread_unuse_mm(order->f->park);
}

/*
 * CPUs return an mm while it is dropped, while others may be asked to let go, and
 * while the policy changes.
 */
static void race(struct kunit *test, bool change)
{
	struct fixture *f = test->priv;
	unsigned int nr = min(f->nr - 1, RACERS), round, i;
	struct order racer[RACERS];
	struct mm_struct *mm;
	atomic_t ready;

	for (round = 0; round < RACES; round++) {
		mm = new_mm(test);
		mmgrab(mm);
		atomic_set(&ready, nr + 1);
		for (i = 0; i < nr; i++) {
			start(f->worker[i + 1], &racer[i], race_fn, mm);
			racer[i].f = f;
			racer[i].ready = &ready;
			racer[i].delay = round * (i + 1) % 97;
			/* Pairs with smp_load_acquire() in race_fn(). */
			smp_store_release(&racer[i].go, true);
		}
		/* Those who use it have gone on. */
		while (atomic_read(&ready) > 1) {
			if (change)
				set_policy(test, policies[get_random_u32_below(3)]);
			cpu_relax();
		}
		mmdrop(mm);
		get_set_go(&ready, round % 89);
		mmdrop(mm);
		for (i = 0; i < nr; i++) {
			if (change)
				set_policy(test, policies[(round + i) % 3]);
			kthread_flush_work(&racer[i].work);
		}
		if (round % 100 == 99)
			expect_mms(test, 0);
	}
}

static void drop_against_return(struct kunit *test)
{
	set_the_policy(test);
	race(test, false);
}

static void policy_change_against_all(struct kunit *test)
{
	race(test, true);
}

/* What changes nothing is not counted, nor is what is refused. */
static void policy_changes_are_counted(struct kunit *test)
{
	struct fixture *f = test->priv;
	unsigned int i;

	set_policy(test, policies[0]);
	count_from_here(f);
	for (i = 1; i <= 6; i++) {
		set_policy(test, policies[i % 3]);
		set_policy(test, policies[i % 3]);
		KUNIT_EXPECT_EQ(test, lazy_tlb_policy_counts(), i % 3 == 2);
		KUNIT_EXPECT_EQ(test, lazy_tlb_shoots(), i % 3 == 0);
	}
	KUNIT_EXPECT_EQ(test, lazy_tlb_change_policy("defer"), -EINVAL);
	KUNIT_EXPECT_STREQ(test, lazy_tlb_policy_name(), policies[0]);
	KUNIT_EXPECT_EQ(test, counted(f, LAZY_TLB_POLICY_CHANGES), 6);
}

#ifdef CONFIG_X86
static void leave_mm_ipi(void *unused)
{
	leave_mm();
}

/*
 * A CPU in a deep idle state has loaded init_mm, and is lazy on the mm all the same.
 * The flush of an exit interrupts it. If it is to let go, that is the time, or the
 * final drop would wake it up once more.
 */
static void flush_finds_deep_idle(struct kunit *test)
{
	const struct trip *trip = test->param_value;
	struct mm_struct *mm = begin(test, trip);
	struct fixture *f = test->priv;

	smp_call_function_single(f->cpu[1], leave_mm_ipi, NULL, true);
	expect_lazy(test, f->cpu[1], mm, trip);
	flush_tlb_mm_range(mm, 0, TLB_FLUSH_ALL, 0, true);
	if (shoots()) {
		KUNIT_EXPECT_EQ(test, raw_slot(f->cpu[1]), 0);
		expect_let_go(test, f->cpu[1]);
	} else {
		expect_lazy(test, f->cpu[1], mm, trip);
	}
	count_from_here(f);
	mmdrop(mm);
	KUNIT_EXPECT_EQ(test, counted(f, LAZY_TLB_NUDGED), 0);
	make_lazy(f, 1, f->park);
	expect_mms(test, 0);
}
#endif

static struct kunit_case lazy_tlb_test_cases[] = {
	KUNIT_CASE_PARAM(kernel_to_kernel_keeps_the_slot, trip_gen_params),
	KUNIT_CASE_PARAM(use_mm_returns, trip_gen_params),
	KUNIT_CASE_PARAM(use_mm_returns_the_same, borrow_gen_params),
	KUNIT_CASE_PARAM(let_go_returns, trip_gen_params),
	KUNIT_CASE_PARAM(nudge_asks_for_what_was_handed, trip_gen_params),
	KUNIT_CASE_PARAM(unuse_mm_after_migration, borrow_gen_params),
#ifdef CONFIG_X86
	KUNIT_CASE_PARAM(trips_write_mm_count_if_refcounted, policy_gen_params),
#endif
	KUNIT_CASE_PARAM(use_mm_preempted_and_migrated, policy_gen_params),
	KUNIT_CASE_PARAM(this_cpu_is_lazy, policy_gen_params),
	KUNIT_CASE_PARAM(every_lazy_cpu_is_found, borrow_gen_params),
	KUNIT_CASE_PARAM(last_cpu_frees_the_mm, policy_gen_params),
	KUNIT_CASE_PARAM(counted_and_not, policy_gen_params),
	KUNIT_CASE_PARAM(drop_in_any_context, policy_gen_params),
#ifdef CONFIG_MMU_NOTIFIER
	KUNIT_CASE_PARAM(drop_by_mmu_notifier, policy_gen_params),
#endif
	KUNIT_CASE_PARAM(drop_waits_for_nobody, policy_gen_params),
#ifdef CONFIG_X86
	KUNIT_CASE_PARAM(flush_finds_deep_idle, policy_gen_params),
#endif
	KUNIT_CASE(mm_is_given_up_under_pi_lock),
	KUNIT_CASE_PARAM(drop_against_return, policy_gen_params),
	KUNIT_CASE_SLOW(policy_change_against_all),
	KUNIT_CASE(policy_changes_are_counted),
	{}
};

static struct kunit_suite lazy_tlb_test_suite = {
	.name = "lazy_tlb",
	.init = lazy_tlb_test_init,
	.exit = lazy_tlb_test_exit,
	.test_cases = lazy_tlb_test_cases,
};

kunit_test_suite(lazy_tlb_test_suite);
