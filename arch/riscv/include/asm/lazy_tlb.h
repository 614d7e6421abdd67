/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _ASM_RISCV_LAZY_TLB_H
#define _ASM_RISCV_LAZY_TLB_H

/*
 * Whatever takes the page tables from current->active_mm, or puts back what it
 * has read from satp, does it with interrupts disabled from the read to the last
 * use, so that the interrupt that makes a CPU let go comes before or after:
 * efi_virtmap_load(), efi_virtmap_unload(), suspend_restore_csrs(), and
 * vmalloc_fault() on 32 bits. So does hibernation. Only its header has satp read
 * with interrupts enabled, of an mm that was there when memory was copied.
 * flush_icache_mm() only compares active_mm.
 */

#include <linux/mm_types.h>
#include <linux/mmu_context.h>
#include <linux/pgtable.h>
#include <asm/csr.h>
#include <asm/page.h>
#include <asm/tlbflush.h>

static inline bool arch_lazy_tlb_loaded(struct mm_struct *mm)
{
	return (csr_read(CSR_SATP) & SATP_PPN) == virt_to_pfn(mm->pgd);
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
	 * Translations that began with the old satp may be on their way still, those
	 * of global entries in the kernel's half of the pgd included. This ends them
	 * before the pgd may be freed.
	 */
	local_flush_tlb_all();
}

#define arch_lazy_tlb_let_go arch_lazy_tlb_let_go

#include <asm-generic/lazy_tlb.h>

#endif /* _ASM_RISCV_LAZY_TLB_H */
