/* SPDX-License-Identifier: GPL-2.0 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM lazy_tlb

#if !defined(_TRACE_LAZY_TLB_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_LAZY_TLB_H

#include <linux/tracepoint.h>

struct mm_struct;

/*
 * The final drop of an mm, after its lazy CPUs were dealt with. What the fields
 * count is what the lazy_tlb_* lines of /proc/vmstat sum up.
 */
TRACE_EVENT(lazy_tlb_final_drop,
	    TP_PROTO(const struct mm_struct *mm, const char *policy,
		     unsigned int scanned, unsigned int lazy, unsigned int ipis,
		     bool deferred),
	    TP_ARGS(mm, policy, scanned, lazy, ipis, deferred),

	    TP_STRUCT__entry(__field(const void *, mm)
			     __string(policy, policy)
			     __field(unsigned int, scanned)
			     __field(unsigned int, lazy)
			     __field(unsigned int, ipis)
			     __field(bool, deferred)),

	    TP_fast_assign(__entry->mm = mm;
			   __assign_str(policy);
			   __entry->scanned = scanned;
			   __entry->lazy = lazy;
			   __entry->ipis = ipis;
			   __entry->deferred = deferred;),

	    TP_printk("mm=%p policy=%s scanned=%u lazy=%u ipis=%u deferred=%d",
		      __entry->mm, __get_str(policy), __entry->scanned,
		      __entry->lazy, __entry->ipis, __entry->deferred)
);

/* An mm that had to wait is freed. */
TRACE_EVENT(lazy_tlb_reap,
	    TP_PROTO(const struct mm_struct *mm, const char *policy,
		     unsigned int waited_ms),
	    TP_ARGS(mm, policy, waited_ms),

	    TP_STRUCT__entry(__field(const void *, mm)
			     __string(policy, policy)
			     __field(unsigned int, waited_ms)),

	    TP_fast_assign(__entry->mm = mm;
			   __assign_str(policy);
			   __entry->waited_ms = waited_ms;),

	    TP_printk("mm=%p policy=%s waited=%ums", __entry->mm,
		      __get_str(policy), __entry->waited_ms)
);

/* One cross-call for all mms that wait. */
TRACE_EVENT(lazy_tlb_round,
	    TP_PROTO(const char *policy, unsigned int waiting, unsigned int ipis),
	    TP_ARGS(policy, waiting, ipis),

	    TP_STRUCT__entry(__string(policy, policy)
			     __field(unsigned int, waiting)
			     __field(unsigned int, ipis)),

	    TP_fast_assign(__assign_str(policy);
			   __entry->waiting = waiting;
			   __entry->ipis = ipis;),

	    TP_printk("policy=%s waiting=%u ipis=%u", __get_str(policy),
		      __entry->waiting, __entry->ipis)
);

#endif /* _TRACE_LAZY_TLB_H */

/* This part must be outside protection */
#include <trace/define_trace.h>
