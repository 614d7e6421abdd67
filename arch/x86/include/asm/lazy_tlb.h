/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _ASM_X86_LAZY_TLB_H
#define _ASM_X86_LAZY_TLB_H

/*
 * mm_cpumask() is what the final drop has to look at: switch_mm_irqs_off() sets
 * the bit of this CPU before it loads the mm, and the bit is cleared only when
 * the CPU has loaded something else. active_mm of a kernel thread never differs
 * from what is loaded, unless that is a temporary mm or init_mm: everything that
 * makes a lazy CPU leave its mm goes through lazy_tlb_let_go().
 */

struct mm_struct;

void arch_lazy_tlb_let_go(struct mm_struct *mm);
#define arch_lazy_tlb_let_go arch_lazy_tlb_let_go

bool arch_lazy_tlb_loaded(struct mm_struct *mm);
#define arch_lazy_tlb_loaded arch_lazy_tlb_loaded

#include <asm-generic/lazy_tlb.h>

#endif /* _ASM_X86_LAZY_TLB_H */
