// SPDX-License-Identifier: GPL-2.0

#include <linux/lazy_tlb.h>
#include <linux/mm_types.h>
#include <asm/lazy_tlb.h>

#ifdef CONFIG_MMU_LAZY_TLB_SHOOTDOWN_RUST
__rust_helper struct mm_struct *rust_helper_lazy_tlb_slot_of(unsigned int cpu)
{
	return lazy_tlb_slot_of(cpu);
}

__rust_helper struct cpumask *
rust_helper_arch_lazy_tlb_cpumask(struct mm_struct *mm)
{
	return arch_lazy_tlb_cpumask(mm);
}
#endif
