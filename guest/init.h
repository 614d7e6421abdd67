/* SPDX-License-Identifier: GPL-2.0 */
/* What a program needs that is the first process of a guest. */
#ifndef GUEST_COMMON_H
#define GUEST_COMMON_H

#include "../tools/testing/selftests/lazy_tlb/lazy_tlb.h"

#include <dirent.h>
#include <linux/reboot.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <termios.h>

/* Nonzero once anything went wrong that is no test's own result. */
static int guest_status;

/* Drained, so that nothing the kernel prints later lands within the line. */
#define guest_line(fmt, ...) do {					\
	lazy_line(STDOUT_FILENO, fmt, ##__VA_ARGS__);			\
	tcdrain(STDOUT_FILENO);						\
} while (0)

#define guest_problem(fmt, ...) do {					\
	guest_line("lazy-tlb-guest: " fmt, ##__VA_ARGS__);		\
	guest_status = 1;						\
} while (0)

/* How the architectures call what carries a cross-call in /proc/interrupts. */
static const char * const guest_cross_call[] __attribute__((unused)) = {
	"Function call interrupts",	/* x86, arm64 */
	"ipi call function",		/* powerpc, as an interrupt of its own */
	"Doorbell interrupts",		/* powerpc */
	"[EXT] External Call",		/* s390 */
	"[EXT] Emergency Signal",	/* s390 */
	NULL
};

static inline void guest_mount(const char *type, const char *dir)
{
	if (mkdir(dir, 0755) && errno != EEXIST)
		guest_problem("mkdir %s: %s", dir, strerror(errno));
	/* EBUSY: the kernel or the initramfs did it already. */
	if (mount(type, dir, type, 0, NULL) && errno != EBUSY)
		guest_problem("mount %s on %s: %s", type, dir, strerror(errno));
}

/* Where an architecture has several, the kernel names the one it runs. */
static inline void guest_mmu(void)
{
	FILE *file = fopen("/proc/cpuinfo", "r");
	char line[256], mmu[64];

	while (file && fgets(line, sizeof(line), file)) {
		if (sscanf(line, "MMU : %63s", mmu) != 1)
			continue;
		guest_line("lazy-tlb-guest: mmu=%s", mmu);
		break;
	}
	if (file)
		fclose(file);
}

/* Objects in use of the slab caches that page tables come from: powerpc has such, and some PGDs. */
static inline long guest_page_table_objects(void)
{
	DIR *dir = opendir("/sys/kernel/slab");
	long objects, sum = 0;
	struct dirent *entry;

	while (dir && (entry = readdir(dir))) {
		if (strncmp(entry->d_name, "pgtable-", 8) && strncmp(entry->d_name, "pgd", 3))
			continue;
		lazy_slab_shrink(entry->d_name);
		objects = lazy_slab_objects(entry->d_name);
		if (objects > 0)
			sum += objects;
	}
	if (dir)
		closedir(dir);
	return sum;
}

/* Pages of page tables, and objects, that are in use; -1 if the kernel does not say. */
static inline long guest_page_tables(void)
{
	long pages, least = -1;
	int i;

	/* What was freed a moment ago may wait for a grace period still. */
	for (i = 0; i < 10; i++) {
		/* What each CPU has counted for itself, up to a hundred, is added now. */
		if (!lazy_write_file("/proc/sys/vm/stat_refresh", "1") ||
		    !lazy_vmstat("nr_page_table_pages", &pages))
			return -1;
		pages += guest_page_table_objects();
		if (least < 0 || pages < least)
			least = pages;
		lazy_sleep_us(100000);
	}
	return least;
}

static inline void guest_start(void)
{
	int fd;

	/* Before anything is destroyed on a machine that is no guest. */
	if (getpid() != 1) {
		fprintf(stderr, "to be run as the first process of a guest\n");
		exit(2);
	}
	umask(022);
	guest_mount("devtmpfs", "/dev");
	fd = open("/dev/console", O_RDWR | O_NOCTTY);
	if (fd >= 0) {
		dup2(fd, STDIN_FILENO);
		dup2(fd, STDOUT_FILENO);
		dup2(fd, STDERR_FILENO);
		if (fd > STDERR_FILENO)
			close(fd);
	}
	guest_mount("proc", "/proc");
	guest_mount("sysfs", "/sys");
	guest_mount("debugfs", "/sys/kernel/debug");
	guest_mount("tmpfs", "/tmp");
	guest_line("lazy-tlb-guest: cpus=%ld", sysconf(_SC_NPROCESSORS_ONLN));
	guest_mmu();
}

static inline void guest_end(void)
{
	guest_line("lazy-tlb-guest: done status=%d", guest_status);
	sync();
	/* Not all of them can be switched off. The emulator takes this as the end. */
	reboot(RB_AUTOBOOT);
	for (;;)
		pause();
}

#endif /* GUEST_COMMON_H */
