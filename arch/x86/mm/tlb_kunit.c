// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit tests of which mm a CPU has loaded, and of which one it remembers as the
 * last user mm, by which cond_mitigation() decides about an IBPB.
 *
 * They run at boot, before the first process. So no user task switches to an mm
 * in between, and nothing else changes what the CPU remembers. Where they are run
 * again, by debugfs, a task that comes in between may hide a bug.
 */
#include <kunit/test.h>
#include <linux/cpufeature.h>
#include <linux/cpumask.h>
#include <linux/irqflags.h>
#include <linux/kthread.h>
#include <linux/mmu_context.h>
#include <linux/preempt.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/sched/task.h>
#include <linux/suspend.h>

#include <asm/desc.h>
#include <asm/tlbflush.h>

static struct mm_struct *new_mm(struct kunit *test)
{
	struct mm_struct *mm;

	if (boot_cpu_has(X86_FEATURE_XENPV))
		kunit_skip(test, "Xen PV wants to be told of an mm before it is used");
	mm = mm_alloc();
	KUNIT_ASSERT_NOT_NULL(test, mm);
	return mm;
}

/* The context ID; below it are the two bits of TIF_SPEC_*. */
static u64 last_user_ctx_id(void)
{
	return this_cpu_read(cpu_tlbstate.last_user_mm_spec) >> 2;
}

/*
 * An mm at the address of a freed mm must not be taken for it. Whose address is
 * used again is up to the slab allocator, so give an mm another context instead:
 * that is all by which the two could be told apart.
 */
static void mm_at_the_same_address_is_another(struct kunit *test)
{
	struct mm_struct *mm = new_mm(test);
	u64 first, first_id, second = 0;
	int error;

	migrate_disable();
	first_id = mm->context.ctx_id;
	kthread_use_mm(mm);
	first = last_user_ctx_id();
	kthread_unuse_mm(mm);

	/* To init_mm, or the next switch would be none. */
	scoped_guard(irqsave)
		leave_mm();
	destroy_context(mm);
	error = init_new_context(current, mm);
	if (!error) {
		kthread_use_mm(mm);
		second = last_user_ctx_id();
		kthread_unuse_mm(mm);
	}
	migrate_enable();

	KUNIT_EXPECT_EQ(test, error, 0);
	KUNIT_EXPECT_EQ(test, first, first_id);
	KUNIT_EXPECT_EQ(test, second, mm->context.ctx_id);
	KUNIT_EXPECT_NE(test, first, second);
	mmput(mm);
}

/* After exec the CPU remembers the mm that runs, not the one that it replaced. */
static void exec_switches_between_mms(struct kunit *test)
{
	struct mm_struct *old = new_mm(test), *new = new_mm(test);
	u64 before, after;

	migrate_disable();
	kthread_use_mm(old);
	before = last_user_ctx_id();

	/* What exec_mmap() does. */
	mmgrab(new);
	task_lock(current);
	local_irq_disable();
	current->active_mm = new;
	current->mm = new;
	activate_mm(old, new);
	local_irq_enable();
	task_unlock(current);
	mmdrop(old);

	after = last_user_ctx_id();
	kthread_unuse_mm(new);
	migrate_enable();

	KUNIT_EXPECT_EQ(test, before, old->context.ctx_id);
	KUNIT_EXPECT_EQ(test, after, new->context.ctx_id);
	mmput(old);
	mmput(new);
}

/*
 * A CPU that is lazy on an mm leaves it at a flush, rather than be interrupted
 * for the next one.
 */
static void flush_makes_a_lazy_cpu_leave(struct kunit *test)
{
	struct mm_struct *mm = new_mm(test), *before = NULL, *after;

	migrate_disable();
	/* Another kernel thread may have the CPU leave it first. */
	for (int tries = 0; tries < 10 && before != mm; tries++) {
		kthread_use_mm(mm);
		kthread_unuse_mm(mm);
		before = this_cpu_read(cpu_tlbstate.loaded_mm);
	}
	flush_tlb_mm(mm);
	after = this_cpu_read(cpu_tlbstate.loaded_mm);
	migrate_enable();

	KUNIT_EXPECT_PTR_EQ(test, before, mm);
	KUNIT_EXPECT_PTR_EQ(test, after, &init_mm);
	mmput(mm);
}

#if defined(CONFIG_PM_SLEEP) && defined(CONFIG_MODIFY_LDT_SYSCALL)
/*
 * A kernel thread that runs a resume may be lazy on an mm that the CPU has left.
 * Do what a resume does, on the CPU that does it: the LDT must be that of the mm
 * in CR3, which has none.
 */
static void resume_loads_the_ldt_of_the_loaded_mm(struct kunit *test)
{
	/* Never used: no segment register selects it. */
	static struct desc_struct entry;
	static struct ldt_struct ldt = { .entries = &entry, .nr_entries = 1 };
	struct mm_struct *mm = new_mm(test);
	u16 used, left, resumed;

	KUNIT_ASSERT_EQ(test, set_cpus_allowed_ptr(current, cpumask_of(0)), 0);
	mm->context.ldt = &ldt;
	kthread_use_mm(mm);
	store_ldt(used);
	kthread_unuse_mm(mm);

	scoped_guard(irqsave) {
		leave_mm();
		store_ldt(left);
		save_processor_state();
		restore_processor_state();
		store_ldt(resumed);
		clear_LDT();
	}
	mm->context.ldt = NULL;

	KUNIT_EXPECT_NE(test, used, 0);
	KUNIT_EXPECT_EQ(test, left, 0);
	KUNIT_EXPECT_EQ(test, resumed, 0);
	mmput(mm);
}
#endif

static struct kunit_case tlb_test_cases[] = {
	KUNIT_CASE(mm_at_the_same_address_is_another),
	KUNIT_CASE(exec_switches_between_mms),
	KUNIT_CASE(flush_makes_a_lazy_cpu_leave),
#if defined(CONFIG_PM_SLEEP) && defined(CONFIG_MODIFY_LDT_SYSCALL)
	KUNIT_CASE(resume_loads_the_ldt_of_the_loaded_mm),
#endif
	{}
};

static struct kunit_suite tlb_test_suite = {
	.name = "x86_tlb",
	.test_cases = tlb_test_cases,
};

kunit_test_suite(tlb_test_suite);
