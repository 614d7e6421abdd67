/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _LINUX_LAZY_TLB_H
#define _LINUX_LAZY_TLB_H

/*
 * Lazy TLB mms without reference counts.
 *
 * A CPU that runs a kernel thread or the idle task keeps the page tables of
 * the last user mm loaded: it is lazy on that mm. Each CPU says so in a slot
 * of its own. The law:
 *
 *  1. Publish the mm in the slot before the reference that makes the borrow
 *     legal can be dropped.
 *  2. Retire the slot only after the last use of the mm on that CPU, its page
 *     tables included.
 *  3. Free the mm only after every CPU that may be lazy on it was seen
 *     retired, or was switched to init_mm.
 *
 * The slot is written by its own CPU only, with interrupts disabled:
 *
 *   transition                          slot      who pins the mm meanwhile
 *   user -> kernel, context_switch()    publish   prev's mm_users
 *   kernel -> kernel                    no store  the slot itself
 *   kernel -> user, finish_task_switch  retire    -
 *   exit_mm()                           publish   mm_users until mmput()
 *   kthread_unuse_mm()                  publish   mm_count until mmdrop()
 *   kthread_use_mm(), exec_mmap()       retire    the caller
 *   sched_force_init_mm()               retire    -
 *   powerpc exit_lazy_flush_tlb()       retire    who flushes
 *   lazy_tlb_let_go()                   retire    the final drop waits for it,
 *                                                 or has not happened yet
 *
 * So wherever interrupts are enabled: the slot holds current->active_mm if
 * current has no mm of its own and active_mm is not init_mm, else NULL.
 *
 * See Documentation/mm/lazy_tlb.rst.
 */

#include <linux/cpumask.h>
#include <linux/jump_label.h>
#include <linux/kconfig.h>
#include <linux/mm_types.h>
#include <linux/percpu-defs.h>
#include <linux/smp.h>
#include <linux/types.h>
#include <asm/barrier.h>
#include <asm/rwonce.h>

#ifdef CONFIG_MMU_LAZY_TLB_SHOOTDOWN_RUST

DECLARE_PER_CPU(struct mm_struct *, lazy_tlb_slot);
DECLARE_STATIC_KEY_FALSE(lazy_tlb_refcount_key);

/**
 * lazy_tlb_refcounted() - does a lazy CPU hold a reference in mm_count?
 *
 * Fixed from sched_init() on, before the first user mm exists.
 *
 * Context: Any.
 * Return: true if mmgrab_lazy_tlb() and mmdrop_lazy_tlb() count.
 */
static __always_inline bool lazy_tlb_refcounted(void)
{
	return static_branch_unlikely(&lazy_tlb_refcount_key);
}

/**
 * lazy_tlb_publish() - this CPU is now lazy on an mm
 * @mm: the mm; the caller holds a reference on it
 *
 * A plain store is enough. The final drop cannot come before the caller's
 * reference is gone, and whatever drops that one later, here or on another CPU,
 * is ordered after this store: by program order here, by the release of
 * prev->on_cpu in finish_task() and its acquire in try_to_wake_up() elsewhere.
 * mm_count itself is a chain of fully ordered operations whose last one precedes
 * the scan.
 *
 * Nor does it weaken lazy_tlb_retire() before it, whose release it overwrites: a
 * full barrier lies in between, smp_mb__after_spinlock() in __schedule(),
 * exit_mm() and kthread_unuse_mm().
 *
 * Context: Interrupts disabled.
 */
static __always_inline void lazy_tlb_publish(struct mm_struct *mm)
{
	/* Read by lazy_tlb_slot_of(), after the last mmdrop(). */
	WRITE_ONCE(*this_cpu_ptr(&lazy_tlb_slot), mm);

#ifdef CONFIG_ARCH_LAZY_TLB_STICKY_CPUMASK
	/*
	 * Only this CPU ever sets its own bit, and nobody clears it before the
	 * memory is an mm again: once it reads as set, there is nothing left to
	 * do, and the line stays shared. The final drop finds the bit for the
	 * same reason as the slot: it is set, now or earlier on this CPU, before
	 * the reference can be dropped.
	 */
	if (!cpumask_test_cpu(smp_processor_id(), mm_lazy_tlb_cpumask(mm)))
		cpumask_set_cpu(smp_processor_id(), mm_lazy_tlb_cpumask(mm));
#endif
}

/**
 * lazy_tlb_retire() - this CPU does not use the mm in its slot any more
 *
 * No-op if it was not lazy.
 *
 * Context: Interrupts disabled, after switch_mm_irqs_off() has returned.
 */
static __always_inline void lazy_tlb_retire(void)
{
	/*
	 * Pairs with smp_load_acquire() in lazy_tlb_slot_of(): whoever sees the
	 * slot empty and frees the mm does so after our last access to it.
	 */
	smp_store_release(this_cpu_ptr(&lazy_tlb_slot), NULL);
}

/**
 * lazy_tlb_slot_of() - the mm that a CPU is lazy on
 * @cpu: the CPU
 *
 * The answer is stable only in one case: for an mm whose mm_count is zero, a
 * CPU that was seen not to hold it will not become lazy on it again.
 *
 * Context: Any.
 * Return: the mm, which must not be dereferenced, or NULL.
 */
static inline struct mm_struct *lazy_tlb_slot_of(unsigned int cpu)
{
	/*
	 * Pairs with smp_store_release() in lazy_tlb_retire(), or with the full
	 * barrier after that if this reads what was published later: what
	 * follows, up to freeing the mm, comes after the last access of that CPU.
	 */
	return smp_load_acquire(per_cpu_ptr(&lazy_tlb_slot, cpu));
}

bool lazy_tlb_let_go(struct mm_struct *mm);
bool lazy_tlb_let_go_dropped(void);
void lazy_tlb_init(void);

/* A TLB flush, sent anyway, has made this CPU let go. Needs <linux/vmstat.h>. */
#define lazy_tlb_count_piggybacked()	count_vm_event(LAZY_TLB_PIGGYBACKED)

/* In kernel/fork.c: the part of __mmdrop() that frees. */
void lazy_tlb_free(struct mm_struct *mm);

/* Mms that wait for lazy CPUs, mm/lazy_tlb/waiting.c. */
void lazy_tlb_scan_later(unsigned int delay_ms);
bool lazy_tlb_flush_waiting(void);

/* In Rust, mm/lazy_tlb/lazy_tlb.rs. */
void lazy_tlb_final_drop(struct mm_struct *mm);
void lazy_tlb_scan(void);
void lazy_tlb_flush(void);
size_t lazy_tlb_nr_waiting(void);
bool lazy_tlb_select_policy(const char *name);
bool lazy_tlb_policy_init(void);
bool lazy_tlb_policy_waits(void);
const char *lazy_tlb_policy_name(void);

#else /* !CONFIG_MMU_LAZY_TLB_SHOOTDOWN_RUST */

static __always_inline bool lazy_tlb_refcounted(void)
{
	return IS_ENABLED(CONFIG_MMU_LAZY_TLB_REFCOUNT);
}

static __always_inline void lazy_tlb_publish(struct mm_struct *mm) { }
static __always_inline void lazy_tlb_retire(void) { }

static inline struct mm_struct *lazy_tlb_slot_of(unsigned int cpu)
{
	return NULL;
}

#define lazy_tlb_count_piggybacked()	do { } while (0)
static inline bool lazy_tlb_let_go(struct mm_struct *mm) { return false; }
static inline void lazy_tlb_init(void) { }
static inline bool lazy_tlb_flush_waiting(void) { return false; }
static inline bool lazy_tlb_policy_waits(void) { return false; }
static inline void lazy_tlb_final_drop(struct mm_struct *mm) { }

#endif /* CONFIG_MMU_LAZY_TLB_SHOOTDOWN_RUST */

#endif /* _LINUX_LAZY_TLB_H */
