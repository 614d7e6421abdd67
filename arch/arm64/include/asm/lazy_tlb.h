/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _ASM_ARM64_LAZY_TLB_H
#define _ASM_ARM64_LAZY_TLB_H

/*
 * Whatever takes the page tables from current->active_mm does it with interrupts
 * disabled from the read to the last use, so that the interrupt that makes a CPU
 * let go comes before or after: cpu_uninstall_idmap(), after a CPU has lost its
 * context in an idle state too, efi_virtmap_unload(), show_pte().
 * __check_safe_pte_update() only compares it.
 */

#include <linux/bits.h>
#include <linux/mm_types.h>
#include <linux/mmu_context.h>
#include <linux/pgtable.h>
#include <linux/sched.h>
#include <asm/barrier.h>
#include <asm/sysreg.h>

static inline bool ttbr0_is_of_mm(u64 ttbr0, struct mm_struct *mm)
{
	/* BADDR, which leaves out the ASID and CnP. */
	return (ttbr0 & GENMASK_ULL(47, 1)) ==
	       phys_to_ttbr(virt_to_phys(mm->pgd));
}

static inline bool saved_ttbr0_is_of_mm(struct mm_struct *mm)
{
#ifdef CONFIG_ARM64_SW_TTBR0_PAN
	return system_uses_ttbr0_pan() &&
	       ttbr0_is_of_mm(READ_ONCE(current_thread_info()->ttbr0), mm);
#else
	return false;
#endif
}

static inline bool arch_lazy_tlb_loaded(struct mm_struct *mm)
{
	return ttbr0_is_of_mm(read_sysreg(ttbr0_el1), mm) ||
	       saved_ttbr0_is_of_mm(mm);
}

#define arch_lazy_tlb_loaded arch_lazy_tlb_loaded

static inline void arch_lazy_tlb_let_go(struct mm_struct *mm)
{
	/*
	 * A kernel thread that cannot sleep calls EFI with interrupts enabled and
	 * efi_mm loaded by efi_virtmap_load(). Leave that in place, here and where
	 * the return from this exception restores TTBR0_EL1 from. When it is done,
	 * efi_virtmap_unload() finds init_mm in active_mm.
	 */
	if (ttbr0_is_of_mm(read_sysreg(ttbr0_el1), mm))
		cpu_set_reserved_ttbr0();

	/* efi_virtmap_unload() has left it there. */
	if (saved_ttbr0_is_of_mm(mm))
		update_saved_ttbr0(current, &init_mm);

	/*
	 * No walk of the old tables starts after the ISB. Wait for those that are
	 * on their way before the pgd may be freed, here, as __switch_to() does for
	 * a switch to another task.
	 */
	dsb(ish);
}

#define arch_lazy_tlb_let_go arch_lazy_tlb_let_go

#include <asm-generic/lazy_tlb.h>

#endif /* _ASM_ARM64_LAZY_TLB_H */
