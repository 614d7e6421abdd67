// SPDX-License-Identifier: GPL-2.0
/*
 * Torture's ingredients that change the machine under all others: CPUs, memory,
 * code, the policy, the firmware. It is put back as it was.
 */
#include "torture.h"

#include <dirent.h>
#include <linux/bpf.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>

#ifndef SYS_bpf
#define SYS_bpf			__NR_bpf
#endif

#define EFIVARS		"/sys/firmware/efi/efivars"

/* Files that switch a static key. */
static const char * const key_file[NR_KEY_FILES] = {
	"/proc/sys/kernel/timer_migration",
	"/proc/sys/kernel/sched_schedstats",
};

/* ---- ingredients ------------------------------------------------------ */

const char *lacks_hotplug(void)
{
	if (!lazy_env("LAZY_TLB_HOTPLUG", false))
		return "LAZY_TLB_HOTPLUG is not 1";
	return storm.can.nr ? NULL : "no CPU can be taken offline";
}

static bool unit_hotplug(unsigned int *seed)
{
	int cpu = storm.can.cpu[lazy_random(seed) % storm.can.nr];
	int online;

	for (online = 0; online < 2; online++) {
		if (!lazy_set_online(cpu, online))
			fail("CPU %d does not go %sline: %s", cpu,
			     online ? "on" : "off", strerror(errno));
		lazy_sleep_us(lazy_random(seed) % 50000);
	}
	count(HOTPLUGS, 1);
	return true;
}

static const char *lacks_oom(void)
{
	if (!lazy_env("LAZY_TLB_OOM", storm.known))
		return "LAZY_TLB_OOM is not 1";
	return access("/proc/sysrq-trigger", W_OK) ? "no /proc/sysrq-trigger" : NULL;
}

/* The first that the OOM killer takes. */
static pid_t start_victim(unsigned int *seed)
{
	int ready[2];
	pid_t pid;

	make_pipe(ready);
	go_somewhere(seed);
	pid = spawn();
	if (!pid) {
		if (!lazy_write_file("/proc/self/oom_score_adj", "1000"))
			fail("oom_score_adj: %s", strerror(errno));
		tell(ready[1]);
		close(ready[1]);
		big_process(seed);
	}
	close(ready[1]);
	if (!await(ready[0]))
		fail("a victim has failed");
	close(ready[0]);
	return pid;
}

/*
 * The kill comes some time after the request, which is refused while another
 * victim is being reaped. So that no late one hits a process of others, there
 * is a second victim as long as one could come.
 */
static bool unit_oom(unsigned int *seed)
{
	pid_t pid = start_victim(seed), spare = start_victim(seed), first;
	int requests = 0, status;
	double again = 0;

	do {
		if (lazy_now() >= again) {
			if (!lazy_write_file("/proc/sysrq-trigger", "f"))
				fail("sysrq-trigger: %s", strerror(errno));
			requests++;
			again = lazy_now() + 5;
		}
		lazy_sleep_us(10000);
		first = waitpid(-1, &status, WNOHANG);
		if (first < 0)
			fail("waitpid: %s", strerror(errno));
	} while (!first);
	count(EXITS, 1);
	check_killed(status);
	count(OOMS, 1);
	if (requests > 1)
		lazy_sleep_us(2000000);
	pid = first == pid ? spare : pid;
	kill(pid, SIGKILL);
	reap_killed(pid);
	/* The kernel has a lot to say about each. */
	lazy_sleep_us(lazy_random(seed) % 300000);
	return true;
}

/* Code is changed under running CPUs, on x86 by way of an mm of its own. */
static const char *lacks_text_poke(void)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(key_file); i++)
		if (*storm.key[i])
			return NULL;
	return "no file that switches a static key";
}

static bool unit_text_poke(unsigned int *seed)
{
	size_t i = lazy_random(seed) % ARRAY_SIZE(key_file);
	char *before;

	while (!*storm.key[i])
		i = (i + 1) % ARRAY_SIZE(key_file);
	before = storm.key[i];
	go_somewhere(seed);
	if (!lazy_write_file(key_file[i], *before == '0' ? "1" : "0") ||
	    !lazy_write_file(key_file[i], before))
		fail("%s: %s", key_file[i], strerror(errno));
	count(TOGGLES, 2);
	lazy_sleep_us(lazy_random(seed) % 2000);
	return true;
}

/* The policy changes under mms that were borrowed under another. */
const char *lacks_policy(void)
{
	return access(LAZY_TLB_POLICY, W_OK) ? "no " LAZY_TLB_POLICY " to write" : NULL;
}

static bool unit_policy(unsigned int *seed)
{
	const char *policy = lazy_policies[lazy_random(seed) % LAZY_NR_POLICIES];

	go_somewhere(seed);
	if (!lazy_set_policy(policy))
		fail("%s: %s", policy, strerror(errno));
	count(POLICIES, 1);
	lazy_sleep_us(lazy_random(seed) % 2000);
	return true;
}

/*
 * A JIT writes code in the same way, but without the breakpoints that static
 * keys need on x86.
 */
static int load_program(void)
{
	static const struct bpf_insn code[] = {
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K },	/* r0 = 0 */
		{ .code = BPF_JMP | BPF_EXIT },
	};
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.prog_type = BPF_PROG_TYPE_SYSCALL;
	attr.prog_flags = BPF_F_SLEEPABLE;
	attr.insns = (uintptr_t)code;
	attr.insn_cnt = ARRAY_SIZE(code);
	attr.license = (uintptr_t)"GPL";
	return syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof(attr));
}

static const char *lacks_bpf(void)
{
	char jit[16];
	int fd;

	/* Root can read it. */
	if (!lazy_read_file("/proc/sys/net/core/bpf_jit_enable", jit, sizeof(jit)))
		*jit = '\0';
	if (*jit == '0')
		return "bpf_jit_enable is 0";
	fd = load_program();
	if (fd < 0)
		return strerror(errno);
	close(fd);
	return NULL;
}

static bool unit_bpf(unsigned int *seed)
{
	int fd;

	go_somewhere(seed);
	fd = load_program();
	if (fd < 0)
		fail("%s", strerror(errno));
	/* Freed after a grace period, and overwritten then. */
	close(fd);
	count(PROGRAMS, 1);
	lazy_sleep_us(lazy_random(seed) % 2000);
	return true;
}

/* The firmware has an mm of its own as well. */
static const char *lacks_efi(void)
{
	struct dirent *entry;
	char value[4096];
	DIR *dir;

	/* Distributions have mounted it. */
	if (!access("/sys/firmware/efi", F_OK)) {
		if (!mount("efivarfs", EFIVARS, "efivarfs", 0, NULL))
			storm.efi_mounted = true;
		else if (errno != EBUSY)
			return "efivarfs cannot be mounted";
	}
	dir = opendir(EFIVARS);
	while (dir && !*storm.efi && (entry = readdir(dir))) {
		snprintf(storm.efi, sizeof(storm.efi), EFIVARS "/%s", entry->d_name);
		/* Those that are too long for this are not for it. */
		if (entry->d_type != DT_REG || !lazy_read_file(storm.efi, value, sizeof(value)))
			*storm.efi = '\0';
	}
	if (dir)
		closedir(dir);
	return *storm.efi ? NULL : "no variable of EFI can be read";
}

bool efi_take_down(void)
{
	return !storm.efi_mounted || !umount(EFIVARS);
}

static bool unit_efi(unsigned int *seed)
{
	char value[4096];

	go_somewhere(seed);
	if (!lazy_read_file(storm.efi, value, sizeof(value)))
		fail("%s: %s", storm.efi, strerror(errno));
	count(EFI_CALLS, 1);
	lazy_sleep_us(lazy_random(seed) % 2000);
	return true;
}

static const char *lacks_memcg(void)
{
	return *storm.memcg.dir ? NULL : "no control groups that limit memory";
}

static bool write_in(const char *dir, const char *name, const char *text)
{
	char path[PATH_MAX + 64];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	return lazy_write_file(path, text);
}

static bool unit_memcg(unsigned int *seed)
{
	size_t size = 32 << 20, page = sysconf(_SC_PAGESIZE), i;
	int status;
	char *area;
	pid_t pid;

	go_somewhere(seed);
	pid = spawn();
	if (!pid) {
		if (!write_in(storm.memcg.dir, "cgroup.procs", "0"))
			fail("cgroup.procs: %s", strerror(errno));
		start_crowd(seed);
		area = mmap(NULL, size, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (area == MAP_FAILED)
			fail("mmap: %s", strerror(errno));
		for (i = 0; i < size; i += page)
			area[i] = 1;
		_exit(0);
	}
	status = reap(pid);
	/* It had swap. */
	if (WIFEXITED(status) && !WEXITSTATUS(status))
		return false;
	check_killed(status);
	count(OOMS, 1);
	lazy_sleep_us(lazy_random(seed) % 100000);
	return true;
}

const struct ingredient machine_ingredients[] = {
	{ .name = "hotplug", .unit = unit_hotplug, .lacks = lacks_hotplug },
	{ .name = "oom", .unit = unit_oom, .lacks = lacks_oom },
	{ .name = "text_poke", .unit = unit_text_poke, .lacks = lacks_text_poke },
	{ .name = "policy", .unit = unit_policy, .lacks = lacks_policy },
	{ .name = "bpf", .unit = unit_bpf, .lacks = lacks_bpf },
	{ .name = "efi", .unit = unit_efi, .lacks = lacks_efi },
	{ .name = "memcg", .unit = unit_memcg, .lacks = lacks_memcg },
	{ }
};

/* ---- as it was --------------------------------------------------------- */

void keys_save(void)
{
	char value[16];
	size_t i;

	for (i = 0; i < ARRAY_SIZE(key_file); i++) {
		if (!access(key_file[i], W_OK) &&
		    lazy_read_file(key_file[i], value, sizeof(value)) &&
		    (!strcmp(value, "0\n") || !strcmp(value, "1\n")))
			memcpy(storm.key[i], value, sizeof(value));
	}
}

bool keys_restore(void)
{
	bool ok = true;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(key_file); i++)
		if (*storm.key[i])
			ok &= lazy_write_file(key_file[i], storm.key[i]);
	return ok;
}

/* Whether @word is among the words of @text. */
bool has_word(const char *text, const char *separators, const char *word)
{
	size_t len;

	for (; *text; text += len + !!text[len]) {
		len = strcspn(text, separators);
		if (len == strlen(word) && !strncmp(text, word, len))
			return true;
	}
	return false;
}

/* The second version's root, where memory can be limited below it. */
static bool memcg_unified(struct memcg *memcg)
{
	char path[PATH_MAX], words[256];

	snprintf(path, sizeof(path), "%s/cgroup.controllers", memcg->root);
	if (!lazy_read_file(path, words, sizeof(words)) || !has_word(words, "\n ", "memory"))
		return false;
	snprintf(path, sizeof(path), "%s/cgroup.subtree_control", memcg->root);
	if (!lazy_read_file(path, words, sizeof(words)))
		*words = '\0';
	if (!has_word(words, "\n ", "memory")) {
		if (!lazy_write_file(path, "+memory"))
			return false;
		memcg->enabled = true;
	}
	memcg->limit = "memory.max";
	return true;
}

static bool memcg_find(struct memcg *memcg)
{
	char type[16], options[256], line[PATH_MAX + 512];
	FILE *mounts = fopen("/proc/mounts", "r");
	bool found = false;

	while (mounts && !found && fgets(line, sizeof(line), mounts)) {
		if (sscanf(line, "%*s %4000s %15s %255s", memcg->root, type, options) != 3)
			continue;
		if (!strcmp(type, "cgroup") && has_word(options, ",", "memory")) {
			memcg->limit = "memory.limit_in_bytes";
			found = true;
		} else if (!strcmp(type, "cgroup2")) {
			found = memcg_unified(memcg);
		}
	}
	if (mounts)
		fclose(mounts);
	if (found || !*storm.dir)
		return found;

	snprintf(memcg->root, sizeof(memcg->root), "%s/cgroup", storm.dir);
	if (mkdir(memcg->root, 0755))
		return false;
	memcg->mounted = !mount("cgroup2", memcg->root, "cgroup2", 0, NULL);
	return memcg->mounted && memcg_unified(memcg);
}

void memcg_set_up(struct memcg *memcg)
{
	if (!memcg_find(memcg))
		return;
	snprintf(memcg->dir, sizeof(memcg->dir), "%s/lazy_tlb.%d", memcg->root, getpid());
	if (mkdir(memcg->dir, 0755)) {
		*memcg->dir = '\0';
		return;
	}
	/* Where there is no swap there is no such file. */
	write_in(memcg->dir, "memory.swap.max", "0");
	if (!write_in(memcg->dir, memcg->limit, "8388608")) {
		rmdir(memcg->dir);
		*memcg->dir = '\0';
	}
}

/* True if everything is as it was. */
bool memcg_take_down(struct memcg *memcg)
{
	double end = lazy_now() + 10;
	bool ok = true;

	/* The last process leaves it a little after its end. */
	while (*memcg->dir && rmdir(memcg->dir)) {
		if (lazy_now() >= end) {
			ok = false;
			break;
		}
		lazy_sleep_us(10000);
	}
	if (memcg->enabled)
		ok &= write_in(memcg->root, "cgroup.subtree_control", "-memory");
	if (memcg->mounted)
		ok &= !umount(memcg->root);
	return ok;
}
