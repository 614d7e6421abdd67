/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _ASM_GENERIC_LAZY_TLB_H
#define _ASM_GENERIC_LAZY_TLB_H

/*
 * What an architecture has to know about a lazy TLB mm. An architecture with
 * an <asm/lazy_tlb.h> of its own defines what differs and includes this file.
 */

#include <linux/mm_types.h>
#include <linux/mmu_context.h>
#include <linux/sched.h>

/**
 * arch_lazy_tlb_let_go() - move this CPU off the page tables of a lazy mm
 * @mm: the mm this CPU was lazy on; current->active_mm is init_mm already
 *
 * For lazy_tlb=shootdown, and for flushes of the architecture that call
 * lazy_tlb_let_go(). Interrupts are disabled. On return the CPU must not use,
 * speculatively or otherwise, the page tables of @mm, nor anything else that is
 * freed with it.
 */
#ifndef arch_lazy_tlb_let_go
static inline void arch_lazy_tlb_let_go(struct mm_struct *mm)
{
	switch_mm_irqs_off(mm, &init_mm, current);
}
#endif

/**
 * arch_lazy_tlb_loaded() - ask the hardware whether this CPU still uses an mm
 * @mm: the mm in question
 *
 * For CONFIG_DEBUG_VM_SHOOT_LAZIES. Interrupts are disabled.
 *
 * Return: true if the page table base of this CPU is that of @mm.
 */
#ifndef arch_lazy_tlb_loaded
static inline bool arch_lazy_tlb_loaded(struct mm_struct *mm)
{
	return false;
}
#endif

#endif /* _ASM_GENERIC_LAZY_TLB_H */
