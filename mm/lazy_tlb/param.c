// SPDX-License-Identifier: GPL-2.0
/*
 * lazy_tlb= on the command line, and /sys/module/kernel/parameters/lazy_tlb. The
 * names that both take are a matter of the policies in Rust. Registering them,
 * and the static key that lazy_tlb_borrow() is compiled against, is up to C.
 */
#define pr_fmt(fmt) "lazy_tlb: " fmt

#include <linux/cleanup.h>
#include <linux/errno.h>
#include <linux/init.h>
#include <linux/jump_label.h>
#include <linux/lazy_tlb.h>
#include <linux/moduleparam.h>
#include <linux/mutex.h>
#include <linux/printk.h>
#include <linux/string.h>
#include <linux/sysfs.h>

/**
 * lazy_tlb_change_policy() - put another policy in force
 * @value: its name, possibly followed by a newline
 *
 * Other CPUs may borrow, return and drop mms meanwhile: how a borrow is given
 * back depends on the slot, not on the policy.
 *
 * Context: Task, may sleep.
 * Return: 0, or -EINVAL if there is no such policy. Then nothing is changed.
 */
int lazy_tlb_change_policy(const char *value)
{
	static DEFINE_MUTEX(changing);
	char name[16];
	int err;

	guard(mutex)(&changing);
	if (strscpy(name, value) < 0)
		return -EINVAL;
	/* What echo writes ends with a newline. */
	err = lazy_tlb_set_policy(strim(name));
	if (err)
		return err;

	if (lazy_tlb_policy_counts())
		static_branch_enable(&lazy_tlb_count_key);
	else
		static_branch_disable(&lazy_tlb_count_key);
	return 0;
}

static int lazy_tlb_param_set(const char *value, const struct kernel_param *kp)
{
	return lazy_tlb_change_policy(value);
}

static int lazy_tlb_param_get(char *buffer, const struct kernel_param *kp)
{
	return sysfs_emit(buffer, "%s\n", lazy_tlb_policy_name());
}

static const struct kernel_param_ops lazy_tlb_param_ops = {
	.set = lazy_tlb_param_set,
	.get = lazy_tlb_param_get,
};

__core_param_cb(lazy_tlb, &lazy_tlb_param_ops, NULL, 0644);

static int __init lazy_tlb_report(void)
{
	pr_info("policy: %s\n", lazy_tlb_policy_name());
	return 0;
}
early_initcall(lazy_tlb_report);
