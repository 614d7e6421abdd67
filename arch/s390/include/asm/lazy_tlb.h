/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _ASM_S390_LAZY_TLB_H
#define _ASM_S390_LAZY_TLB_H

#include <linux/mm_types.h>
#include <asm/ctlreg.h>
#include <asm/lowcore.h>

/*
 * The CPUs that have the ASCE of an mm attached, which is what the final drop has
 * to look at. mm_cpumask() is not: it says where TLB entries may be. It is set in
 * finish_arch_post_lock_switch(), only for a task that has the mm as its own, and
 * a kernel thread may be preempted between kthread_use_mm()'s switch and that
 * call. Then its CPU becomes lazy on the mm without the bit.
 *
 * switch_mm_irqs_off() sets the bit in next and clears it in prev, and prev is
 * current->active_mm wherever it is called from. So wherever interrupts are
 * enabled, the bit of a CPU is set in the mask of current->active_mm and in no
 * other. The slot holds active_mm or nothing, hence its mm has the bit as well.
 *
 * Clearing the bit is the last access to prev, after a full barrier. The slot is
 * retired after that: in between it holds an mm whose mask does not contain the
 * CPU. This is fine, there is nothing left to wait for.
 *
 * To let go, switch_mm_irqs_off() is enough: it leaves the invalid ASCE in the
 * lowcore, CR1 and CR7. CR1 cannot be needed as the kernel's (TIF_ASCE_PRIMARY),
 * since a lazy task does not access user space.
 */
static inline struct cpumask *arch_lazy_tlb_cpumask(struct mm_struct *mm)
{
	return &mm->context.cpu_attach_mask;
}

#define arch_lazy_tlb_cpumask arch_lazy_tlb_cpumask

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
