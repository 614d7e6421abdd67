/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _ASM_X86_LAZY_TLB_H
#define _ASM_X86_LAZY_TLB_H

/*
 * A lazy CPU may have init_mm or a temporary mm loaded, because of a flush, a
 * deep idle state, or a call to EFI. active_mm and the slot keep the lazy mm then.
 */

struct mm_struct;

void arch_lazy_tlb_let_go(struct mm_struct *mm);
#define arch_lazy_tlb_let_go arch_lazy_tlb_let_go

bool arch_lazy_tlb_loaded(struct mm_struct *mm);
#define arch_lazy_tlb_loaded arch_lazy_tlb_loaded

#include <asm-generic/lazy_tlb.h>

#endif /* _ASM_X86_LAZY_TLB_H */
