// SPDX-License-Identifier: GPL-2.0

#include <linux/lazy_tlb.h>
#include <linux/mm_types.h>
#include <linux/preempt.h>
#include <linux/vmstat.h>

#ifdef CONFIG_MMU_LAZY_TLB_SHOOTDOWN_RUST
__rust_helper unsigned long *rust_helper_lazy_tlb_slot_ptr(unsigned int cpu)
{
	return per_cpu_ptr(&lazy_tlb_slot, cpu);
}

__rust_helper struct cpumask *rust_helper_mm_lazy_tlb_cpumask(struct mm_struct *mm)
{
	return mm_lazy_tlb_cpumask(mm);
}

__rust_helper int *rust_helper_mm_count_ptr(struct mm_struct *mm)
{
	return &mm->mm_count.counter;
}

__rust_helper bool rust_helper_mm_test_and_set_handed(struct mm_struct *mm)
{
	return mm_flags_test_and_set(MMF_LAZY_TLB_HANDED, mm);
}

__rust_helper void rust_helper_preempt_disable(void)
{
	preempt_disable();
}

__rust_helper void rust_helper_preempt_enable(void)
{
	preempt_enable();
}

__rust_helper void rust_helper_count_vm_events(enum vm_event_item item, long delta)
{
	count_vm_events(item, delta);
}
#endif
