/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _ASM_LOONGARCH_LAZY_TLB_H
#define _ASM_LOONGARCH_LAZY_TLB_H

#include <linux/mm_types.h>
#include <asm/loongarch.h>

/*
 * To let go, switch_mm_irqs_off() is enough: it leaves invalid_pg_dir in PGDL.
 * Whatever else writes PGDL, KVM and suspend, has interrupts disabled until it is
 * back. __update_tlb() only compares active_mm.
 */
static inline bool arch_lazy_tlb_loaded(struct mm_struct *mm)
{
	return csr_read(LOONGARCH_CSR_PGDL) == (unsigned long)mm->pgd;
}

#define arch_lazy_tlb_loaded arch_lazy_tlb_loaded

#include <asm-generic/lazy_tlb.h>

#endif /* _ASM_LOONGARCH_LAZY_TLB_H */
