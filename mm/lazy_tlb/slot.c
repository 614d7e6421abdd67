// SPDX-License-Identifier: GPL-2.0
/*
 * The per-CPU slot of a lazy TLB mm, and how a CPU lets go of one. What is done
 * with the slots is decided in Rust, see lazy_tlb.rs.
 */
#include <linux/lazy_tlb.h>
#include <linux/lockdep.h>
#include <linux/mm_types.h>
#include <linux/percpu.h>
#include <linux/sched.h>
#include <asm/lazy_tlb.h>

DEFINE_PER_CPU(struct mm_struct *, lazy_tlb_slot);

/**
 * lazy_tlb_let_go() - switch this CPU to init_mm if it is lazy on an mm
 * @mm: the mm to let go of
 *
 * Must not be called for a refcounted lazy mm: the reference would be leaked.
 * Callers other than the final drop check lazy_tlb_refcounted() first.
 *
 * The next switch to a user task goes through membarrier_switch_mm() with
 * init_mm as the previous mm, which membarrier(2) handles like any other.
 *
 * Context: Interrupts disabled. Called from the IPI of the final drop, by a
 *          thread that exits along with others, or by an architecture that has
 *          its own reason to leave a lazy mm.
 * Return: true if the CPU was lazy on @mm.
 */
bool lazy_tlb_let_go(struct mm_struct *mm)
{
	lockdep_assert_irqs_disabled();

	if (current->mm || current->active_mm != mm)
		return false;

	current->active_mm = &init_mm;
	arch_lazy_tlb_let_go(mm);
	lazy_tlb_retire();
	return true;
}

/**
 * lazy_tlb_let_go_dropped() - switch this CPU to init_mm if it is lazy on an mm
 *			      that was dropped
 *
 * For a final drop that asks on behalf of many mms. The slot keeps active_mm
 * valid, so its count can be looked at. Not for a refcounted lazy mm, whose
 * count is not zero.
 *
 * Context: Interrupts disabled.
 * Return: true if the CPU was lazy on such an mm.
 */
bool lazy_tlb_let_go_dropped(void)
{
	struct mm_struct *mm = current->active_mm;

	lockdep_assert_irqs_disabled();

	if (current->mm || mm == &init_mm || atomic_read(&mm->mm_count))
		return false;

	return lazy_tlb_let_go(mm);
}
