/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _LINUX_LAZY_TLB_H
#define _LINUX_LAZY_TLB_H

/*
 * Lazy TLB mms that are counted only at death.
 *
 * A CPU that runs a kernel thread or the idle task keeps the page tables of
 * the last user mm loaded: it borrows that mm, it is lazy on it. While the mm
 * lives nobody counts the borrowers. Each CPU has a slot that names what it
 * borrows:
 *
 *   0             nothing; or a borrow that is counted in mm_count; or init_mm,
 *                 which is never freed
 *   mm            a borrow that is not counted
 *   mm | HANDED   mm_count has been zero since, and the final drop has handed this
 *                 CPU a reference
 *
 *   transition                             call                 slot
 *   user -> kernel, context_switch()       lazy_tlb_borrow()    0 -> mm
 *   exit_mm(), kthread_unuse_mm()          lazy_tlb_borrow()    0 -> mm
 *   kernel -> kernel                       none                 stays
 *   final drop, on any CPU                 hand_over()          mm -> mm | HANDED
 *   kernel -> user, finish_task_switch()   lazy_tlb_return()    -> 0
 *   kthread_use_mm(), exec_mmap()          lazy_tlb_return()    -> 0
 *   sched_force_init_mm()                  lazy_tlb_return()    -> 0
 *   lazy_tlb_let_go()                      lazy_tlb_return()    -> 0
 *
 * So an mm lives exactly as long as if every borrow were counted, unless
 * lazy_tlb=shootdown makes CPUs let go of it earlier.
 *
 * See Documentation/mm/lazy_tlb.rst.
 */

#include <linux/atomic.h>
#include <linux/cpumask.h>
#include <linux/jump_label.h>
#include <linux/kconfig.h>
#include <linux/mm_types.h>
#include <linux/mmdebug.h>
#include <linux/percpu-defs.h>
#include <linux/sched/mm.h>
#include <linux/smp.h>
#include <linux/types.h>
#include <asm/barrier.h>
#include <asm/rwonce.h>

#ifdef CONFIG_MMU_LAZY_TLB_SHOOTDOWN_RUST

/* In a slot: this CPU has been handed a reference on the mm. */
#define LAZY_TLB_SLOT_HANDED		1UL

DECLARE_PER_CPU_SHARED_ALIGNED(unsigned long, lazy_tlb_slot);
DECLARE_STATIC_KEY_MAYBE(CONFIG_LAZY_TLB_DEFAULT_REFCOUNT, lazy_tlb_count_key);

/**
 * lazy_tlb_borrow() - this CPU is now lazy on an mm
 * @mm: the mm; somebody else pins it until this returns
 *
 * Does not count, unless the policy in force is refcount. The policy is looked
 * at once: how a borrow was taken is told by the slot from then on.
 *
 * A plain store is enough. The slot is empty, so the final drop does not touch
 * it. The final drop cannot come before the reference is gone that pins the mm,
 * and whatever drops that one later, here or on another CPU, is ordered after
 * this store: by program order here, elsewhere by the release of prev->on_cpu in
 * finish_task() and its acquire in try_to_wake_up(), or by the lock of the
 * runqueue if the task is moved while it is runnable. The operations on mm_users,
 * and then those on mm_count, are fully ordered, and the last one precedes the
 * scan.
 *
 * Context: Interrupts disabled.
 */
static __always_inline void lazy_tlb_borrow(struct mm_struct *mm)
{
	unsigned int cpu = smp_processor_id();

	if (static_branch_maybe(CONFIG_LAZY_TLB_DEFAULT_REFCOUNT,
				&lazy_tlb_count_key)) {
		mmgrab(mm);
		return;
	}

	VM_WARN_ON_ONCE(READ_ONCE(*this_cpu_ptr(&lazy_tlb_slot)));
	/* Read by FinalDrop::hand_over(), after the last mmdrop(). */
	WRITE_ONCE(*this_cpu_ptr(&lazy_tlb_slot), (unsigned long)mm);

	/*
	 * The CPUs that have ever been lazy on the mm: the final drop looks at no
	 * other slot. Only this CPU sets its bit, and nobody clears it while the
	 * mm lives, so the line stays shared. The final drop finds the bit for
	 * the same reason as the slot.
	 */
	if (!cpumask_test_cpu(cpu, mm_lazy_tlb_cpumask(mm)))
		cpumask_set_cpu(cpu, mm_lazy_tlb_cpumask(mm));
}

/**
 * lazy_tlb_return() - this CPU does not use its lazy mm any more
 * @mm: the mm
 *
 * Must be followed by lazy_tlb_put() of what is returned, possibly later and on
 * another CPU. The two together are a full barrier, on which membarrier(2)
 * relies.
 *
 * Context: Interrupts disabled, after switch_mm_irqs_off() has returned.
 * Return: @mm if there is a reference to drop: this CPU has counted its borrow, or
 *	   was handed a reference. Else NULL.
 */
static __always_inline __must_check struct mm_struct *
lazy_tlb_return(struct mm_struct *mm)
{
	unsigned long *slot = this_cpu_ptr(&lazy_tlb_slot);

	/* Nobody but this CPU fills it. */
	if (likely(READ_ONCE(*slot))) {
		/*
		 * Pairs with the load, cmpxchg() and fetch_sub() in
		 * FinalDrop::hand_over(): either cmpxchg() fails, or is not tried, and
		 * the mm may be freed after our last access to it, or its tag is seen
		 * here, and the reference is ours to drop. Fully ordered: every access
		 * to the mm comes before.
		 */
		unsigned long old = xchg(slot, 0);

		VM_WARN_ON_ONCE((old & ~LAZY_TLB_SLOT_HANDED) != (unsigned long)mm);
		return unlikely(old & LAZY_TLB_SLOT_HANDED) ? mm : NULL;
	}

	/* Counted: lazy_tlb_put() is the barrier. */
	if (likely(mm != &init_mm))
		return mm;
	/*
	 * Nobody counts init_mm. Pairs with the barriers of membarrier(2): what
	 * was stored to rq->curr, or to ->mm in kthread_use_mm(), comes before
	 * what user space does.
	 */
	smp_mb();
	return NULL;
}

/**
 * lazy_tlb_put() - drop a reference that came with a borrow
 * @mm: what lazy_tlb_return() returned
 *
 * Context: As mmdrop().
 */
static inline void lazy_tlb_put(struct mm_struct *mm)
{
	if (unlikely(mm))
		mmdrop(mm);
}

/* The same, for the scheduler, see mmdrop_sched(). */
static inline void lazy_tlb_put_sched(struct mm_struct *mm)
{
	if (unlikely(mm))
		mmdrop_sched(mm);
}

/**
 * lazy_tlb_slot_of() - the mm that a CPU is lazy on, if that is not counted
 * @cpu: the CPU
 *
 * For debugging: the answer may be out of date when it arrives.
 *
 * Context: Any.
 * Return: the mm, which must not be dereferenced, or NULL.
 */
static inline struct mm_struct *lazy_tlb_slot_of(unsigned int cpu)
{
	unsigned long slot = READ_ONCE(*per_cpu_ptr(&lazy_tlb_slot, cpu));

	return (struct mm_struct *)(slot & ~LAZY_TLB_SLOT_HANDED);
}

/* mm/lazy_tlb/slot.c */
bool lazy_tlb_let_go(struct mm_struct *mm);
void lazy_tlb_nudge(unsigned int cpu);

/* kernel/fork.c */
void lazy_tlb_put_async(struct mm_struct *mm);

/* mm/lazy_tlb/param.c */
int lazy_tlb_change_policy(const char *value);

/* In Rust, mm/lazy_tlb/lazy_tlb.rs. */
bool lazy_tlb_final_drop(struct mm_struct *mm);
bool lazy_tlb_shoots(void);
bool lazy_tlb_policy_counts(void);
const char *lazy_tlb_policy_name(void);
int lazy_tlb_set_policy(const char *name);

#else /* !CONFIG_MMU_LAZY_TLB_SHOOTDOWN_RUST */

static __always_inline void lazy_tlb_borrow(struct mm_struct *mm)
{
	mmgrab_lazy_tlb(mm);
}

static __always_inline struct mm_struct *lazy_tlb_return(struct mm_struct *mm)
{
	return mm;
}

static inline void lazy_tlb_put(struct mm_struct *mm)
{
	mmdrop_lazy_tlb(mm);
}

static inline void lazy_tlb_put_sched(struct mm_struct *mm)
{
	mmdrop_lazy_tlb_sched(mm);
}

static inline struct mm_struct *lazy_tlb_slot_of(unsigned int cpu)
{
	return NULL;
}

static inline bool lazy_tlb_let_go(struct mm_struct *mm) { return false; }
static inline bool lazy_tlb_final_drop(struct mm_struct *mm) { return true; }

/* Does the final drop interrupt CPUs? A flush may as well do it before. */
static inline bool lazy_tlb_shoots(void)
{
	return IS_ENABLED(CONFIG_MMU_LAZY_TLB_SHOOTDOWN);
}

#endif /* CONFIG_MMU_LAZY_TLB_SHOOTDOWN_RUST */

#endif /* _LINUX_LAZY_TLB_H */
