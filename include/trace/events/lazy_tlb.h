/* SPDX-License-Identifier: GPL-2.0 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM lazy_tlb

#if !defined(_TRACE_LAZY_TLB_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_LAZY_TLB_H

#include <linux/tracepoint.h>

/*
 * mm_count of an mm has become zero for the first time. What the fields count is
 * what the lazy_tlb_* lines of /proc/vmstat sum up. The mm may be freed already:
 * its address is no more than a name.
 */
TRACE_EVENT(lazy_tlb_final_drop,
	    TP_PROTO(const void *mm, const char *policy,
		     unsigned int scanned, unsigned int handed,
		     unsigned int nudged),
	    TP_ARGS(mm, policy, scanned, handed, nudged),

	    TP_STRUCT__entry(__field(const void *, mm)
			     __string(policy, policy)
			     __field(unsigned int, scanned)
			     __field(unsigned int, handed)
			     __field(unsigned int, nudged)),

	    TP_fast_assign(__entry->mm = mm;
			   __assign_str(policy);
			   __entry->scanned = scanned;
			   __entry->handed = handed;
			   __entry->nudged = nudged;),

	    TP_printk("mm=%p policy=%s scanned=%u handed=%u nudged=%u",
		      __entry->mm, __get_str(policy), __entry->scanned,
		      __entry->handed, __entry->nudged)
);

/* Another policy is in force. */
TRACE_EVENT(lazy_tlb_policy,
	    TP_PROTO(const char *before, const char *after),
	    TP_ARGS(before, after),

	    TP_STRUCT__entry(__string(before, before)
			     __string(after, after)),

	    TP_fast_assign(__assign_str(before);
			   __assign_str(after);),

	    TP_printk("%s -> %s", __get_str(before), __get_str(after))
);

#endif /* _TRACE_LAZY_TLB_H */

/* This part must be outside protection */
#include <trace/define_trace.h>
