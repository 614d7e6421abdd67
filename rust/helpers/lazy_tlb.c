// SPDX-License-Identifier: GPL-2.0

#include <linux/lazy_tlb.h>
#include <linux/mm_types.h>
#include <linux/sched/mm.h>
#include <linux/vmstat.h>
#include <asm/lazy_tlb.h>

#ifdef CONFIG_MMU_LAZY_TLB_SHOOTDOWN_RUST
__rust_helper struct mm_struct *rust_helper_lazy_tlb_slot_of(unsigned int cpu)
{
	return lazy_tlb_slot_of(cpu);
}

__rust_helper bool rust_helper_lazy_tlb_refcounted(void)
{
	return lazy_tlb_refcounted();
}

__rust_helper void rust_helper_lazy_tlb_publish(struct mm_struct *mm)
{
	lazy_tlb_publish(mm);
}

/* As in context_switch(), from a user task to a kernel thread. */
__rust_helper void rust_helper_lazy_tlb_borrow(struct mm_struct *mm)
{
	mmgrab_lazy_tlb(mm);
	lazy_tlb_publish(mm);
}

/* As in finish_task_switch(), from a kernel thread to a user task. */
__rust_helper void rust_helper_lazy_tlb_return(struct mm_struct *mm)
{
	lazy_tlb_retire();
	mmdrop_lazy_tlb_sched(mm);
}

__rust_helper struct cpumask *
rust_helper_arch_lazy_tlb_cpumask(struct mm_struct *mm)
{
	return arch_lazy_tlb_cpumask(mm);
}

__rust_helper struct lazy_tlb_waiting *
rust_helper_lazy_tlb_waiting_of(struct mm_struct *mm)
{
	return &mm->lazy_tlb_waiting;
}

__rust_helper void rust_helper_count_vm_events(enum vm_event_item item, long delta)
{
	count_vm_events(item, delta);
}
#endif
