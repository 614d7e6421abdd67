// SPDX-License-Identifier: GPL-2.0
/*
 * The lazy_tlb= boot parameter. The names it takes are a matter of the policies
 * in Rust; registering it, and the static key that mmgrab_lazy_tlb() is compiled
 * against, are matters of C.
 */
#define pr_fmt(fmt) "lazy_tlb: " fmt

#include <linux/init.h>
#include <linux/jump_label.h>
#include <linux/lazy_tlb.h>
#include <linux/printk.h>

DEFINE_STATIC_KEY_FALSE(lazy_tlb_refcount_key);

static int __init lazy_tlb_setup(char *name)
{
	/* Reports a name that it does not know, and keeps what was chosen. */
	lazy_tlb_select_policy(name ?: "");
	return 0;
}
early_param("lazy_tlb", lazy_tlb_setup);

/**
 * lazy_tlb_init() - put the chosen policy in force
 *
 * There is no way to change it later: an mm that was borrowed under one rule
 * must be given back under the same.
 *
 * Context: Called once by sched_init(), before it makes the idle task lazy.
 */
void __init lazy_tlb_init(void)
{
	if (lazy_tlb_policy_init())
		static_branch_enable(&lazy_tlb_refcount_key);

	pr_info("policy: %s\n", lazy_tlb_policy_name());
}
