/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _ASM_ARM_LAZY_TLB_H
#define _ASM_ARM_LAZY_TLB_H

#ifdef CONFIG_MMU

/*
 * Whatever takes the page tables from current->active_mm, or changes those in
 * TTBR0, does it with interrupts disabled from the read to the last use, so that
 * the interrupt that makes a CPU let go comes before or after: cpu_suspend(),
 * update_sections_early(), vmalloc_fault(), efi_virtmap_load(), efi_virtmap_unload().
 * unmap_area_sections() does not, but is for one CPU, which nobody nudges.
 * __flush_dcache_aliases() only compares active_mm.
 */

#include <linux/mm_types.h>
#include <linux/mmu_context.h>
#include <linux/sched.h>
#include <asm/barrier.h>
#include <asm/proc-fns.h>

/* Without LPAE, TTBR0 has the kernel's mappings as well. */
static inline bool arch_lazy_tlb_loaded(struct mm_struct *mm)
{
	return cpu_get_pgd() == mm->pgd;
}

#define arch_lazy_tlb_loaded arch_lazy_tlb_loaded

static inline void arch_lazy_tlb_let_go(struct mm_struct *mm)
{
	/*
	 * A kernel thread calls EFI with interrupts enabled and efi_mm loaded. Leave
	 * that in place. When it is done, efi_virtmap_unload() finds init_mm in
	 * active_mm.
	 */
	if (arch_lazy_tlb_loaded(mm))
		switch_mm_irqs_off(mm, &init_mm, current);

	/*
	 * No walk of the old tables starts after the ISB of the switch. Wait for
	 * those that are on their way before the pgd may be freed.
	 */
	dsb(ish);
}

#define arch_lazy_tlb_let_go arch_lazy_tlb_let_go

#endif /* CONFIG_MMU */

#include <asm-generic/lazy_tlb.h>

#endif /* _ASM_ARM_LAZY_TLB_H */
