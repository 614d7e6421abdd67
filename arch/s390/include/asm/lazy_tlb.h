/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _ASM_S390_LAZY_TLB_H
#define _ASM_S390_LAZY_TLB_H

#include <linux/mm_types.h>
#include <asm/ctlreg.h>
#include <asm/lowcore.h>

/*
 * To let go, switch_mm_irqs_off() is enough: it leaves the invalid ASCE in the
 * lowcore, CR1 and CR7. CR1 has the kernel's ASCE during an access to user space
 * only (TIF_ASCE_PRIMARY), which a task without an mm does not make.
 */

/*
 * The lowcore has the user ASCE that is loaded next, the control registers what
 * is in use: CR7 the secondary ASCE, and CR1 the primary one unless that is the
 * kernel's.
 */
static inline bool arch_lazy_tlb_loaded(struct mm_struct *mm)
{
	unsigned long asce = mm->context.asce;
	struct ctlreg cr1, cr7;

	local_ctl_store(1, &cr1);
	local_ctl_store(7, &cr7);
	return get_lowcore()->user_asce.val == asce || cr1.val == asce ||
	       cr7.val == asce;
}

#define arch_lazy_tlb_loaded arch_lazy_tlb_loaded

#include <asm-generic/lazy_tlb.h>

#endif /* _ASM_S390_LAZY_TLB_H */
