// SPDX-License-Identifier: GPL-2.0
/*
 * The per-CPU slot of a lazy TLB mm, and how a CPU is asked to let go of one.
 * What the final drop of an mm does with the slots is in Rust, see lazy_tlb.rs.
 */
#include <linux/cpumask.h>
#include <linux/irq_work.h>
#include <linux/lazy_tlb.h>
#include <linux/lockdep.h>
#include <linux/mm_types.h>
#include <linux/percpu.h>
#include <linux/sched.h>
#include <asm/lazy_tlb.h>

/* Written at every trip: on a line of its own, that only final drops look at. */
DEFINE_PER_CPU_SHARED_ALIGNED(unsigned long, lazy_tlb_slot);

DEFINE_STATIC_KEY_MAYBE(CONFIG_LAZY_TLB_DEFAULT_REFCOUNT, lazy_tlb_count_key);

/**
 * lazy_tlb_let_go() - switch this CPU to init_mm if it is lazy on an mm
 * @mm: the mm to let go of
 *
 * Context: Interrupts disabled, and whatever locks a TLB flush holds.
 * Return: true if the CPU was lazy on @mm.
 */
bool lazy_tlb_let_go(struct mm_struct *mm)
{
	lockdep_assert_irqs_disabled();

	if (current->mm || current->active_mm != mm || mm == &init_mm)
		return false;

	current->active_mm = &init_mm;
	arch_lazy_tlb_let_go(mm);
	mm = lazy_tlb_return(mm);
	if (mm)
		lazy_tlb_put_async(mm);
	return true;
}

static void lazy_tlb_nudged(struct irq_work *work)
{
	unsigned long slot = READ_ONCE(*this_cpu_ptr(&lazy_tlb_slot));

	/* It may have switched to a user task since, or become lazy on another mm. */
	if (slot & LAZY_TLB_SLOT_HANDED)
		lazy_tlb_let_go((struct mm_struct *)(slot & ~LAZY_TLB_SLOT_HANDED));
}

static DEFINE_PER_CPU(struct irq_work, lazy_tlb_nudge_work) =
	IRQ_WORK_INIT_HARD(lazy_tlb_nudged);

/**
 * lazy_tlb_nudge() - ask another CPU to let go of the mm that it was handed
 * @cpu: a CPU, which does not go offline by hotplug before this returns
 *
 * Nobody waits for it, not even for an earlier one: smp_call_function_many()
 * could wait for that, and the caller may hold a lock that the other CPU waits
 * for with interrupts disabled.
 *
 * Context: Any but NMI, preemption disabled.
 */
void lazy_tlb_nudge(unsigned int cpu)
{
	/*
	 * Fully ordered against irq_work_single() if the work is pending already:
	 * that one then sees the tag in the slot.
	 */
	if (likely(cpu_online(cpu)))	/* if not, smp_send_stop() has stopped it */
		irq_work_queue_on(per_cpu_ptr(&lazy_tlb_nudge_work, cpu), cpu);
}
