// SPDX-License-Identifier: GPL-2.0
/* The tracepoints, and what Rust calls them by. */
#define CREATE_TRACE_POINTS
#define CREATE_RUST_TRACE_POINTS
#include <trace/events/lazy_tlb.h>
