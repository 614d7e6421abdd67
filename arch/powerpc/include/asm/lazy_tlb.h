/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _ASM_POWERPC_LAZY_TLB_H
#define _ASM_POWERPC_LAZY_TLB_H

#ifdef CONFIG_PPC_BOOK3S_64

#include <linux/mm_types.h>
#include <linux/sched.h>
#include <asm/mmu.h>
#include <asm/reg.h>

/*
 * With the hash MMU, a CPU that uses an mm has some of its segments in the SLB
 * and a copy of its slice sizes in the paca. Neither tells which mm that is: a
 * VSID is scrambled. So only active_mm and the slot are checked there. With the
 * radix MMU, the PID of a task with an mm may be one of a KVM guest.
 */
#define arch_lazy_tlb_loaded arch_lazy_tlb_loaded
static inline bool arch_lazy_tlb_loaded(struct mm_struct *mm)
{
	return radix_enabled() && !current->mm &&
	       mfspr(SPRN_PID) == mm->context.id;
}

#endif /* CONFIG_PPC_BOOK3S_64 */

#include <asm-generic/lazy_tlb.h>

#endif /* _ASM_POWERPC_LAZY_TLB_H */
