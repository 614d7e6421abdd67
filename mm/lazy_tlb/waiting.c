// SPDX-License-Identifier: GPL-2.0
/*
 * When to look at the mms that wait for lazy CPUs to let go: after a while, when
 * memory is short, and before the system goes down. What is done then is decided
 * in Rust, see defer.rs.
 */
#include <linux/init.h>
#include <linux/jiffies.h>
#include <linux/lazy_tlb.h>
#include <linux/mutex.h>
#include <linux/notifier.h>
#include <linux/reboot.h>
#include <linux/shrinker.h>
#include <linux/workqueue.h>

/* One scan or flush at a time. */
static DEFINE_MUTEX(lazy_tlb_waiting_lock);

static void lazy_tlb_scan_fn(struct work_struct *work)
{
	guard(mutex)(&lazy_tlb_waiting_lock);

	/* Asks for the next scan itself. */
	lazy_tlb_scan();
}

static DECLARE_DELAYED_WORK(lazy_tlb_scan_work, lazy_tlb_scan_fn);

/**
 * lazy_tlb_scan_later() - look at the waiting mms, if nothing does so before
 * @delay_ms: in how many milliseconds
 *
 * Context: Any.
 */
void lazy_tlb_scan_later(unsigned int delay_ms)
{
	queue_delayed_work(system_unbound_wq, &lazy_tlb_scan_work,
			   msecs_to_jiffies(delay_ms));
}

/**
 * lazy_tlb_flush_waiting() - free the mms that wait, now
 *
 * For who needs what they hold: memory, context IDs, or that nothing is left to
 * be done. Interrupts the CPUs that are lazy on them.
 *
 * Context: Task, may sleep.
 * Return: true if there were any.
 */
bool lazy_tlb_flush_waiting(void)
{
	guard(mutex)(&lazy_tlb_waiting_lock);

	if (!lazy_tlb_nr_waiting())
		return false;

	lazy_tlb_flush();
	return true;
}

static void lazy_tlb_flush_fn(struct work_struct *work)
{
	lazy_tlb_flush_waiting();
}

static DECLARE_WORK(lazy_tlb_flush_work, lazy_tlb_flush_fn);

static unsigned long lazy_tlb_shrink_count(struct shrinker *shrinker,
					   struct shrink_control *sc)
{
	return lazy_tlb_nr_waiting();
}

static unsigned long lazy_tlb_shrink_scan(struct shrinker *shrinker,
					  struct shrink_control *sc)
{
	/* Who reclaims may hold locks; do not wait for other CPUs here. */
	queue_work(system_unbound_wq, &lazy_tlb_flush_work);
	return SHRINK_STOP;
}

static int lazy_tlb_reboot(struct notifier_block *nb, unsigned long action,
			   void *data)
{
	lazy_tlb_flush_waiting();
	return NOTIFY_DONE;
}

static struct notifier_block lazy_tlb_reboot_nb = {
	.notifier_call = lazy_tlb_reboot,
};

static int __init lazy_tlb_waiting_init(void)
{
	struct shrinker *shrinker;

	register_reboot_notifier(&lazy_tlb_reboot_nb);

	shrinker = shrinker_alloc(0, "lazy-tlb");
	if (!shrinker)
		return -ENOMEM;

	shrinker->count_objects = lazy_tlb_shrink_count;
	shrinker->scan_objects = lazy_tlb_shrink_scan;
	shrinker_register(shrinker);
	return 0;
}
core_initcall(lazy_tlb_waiting_init);
