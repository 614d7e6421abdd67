// SPDX-License-Identifier: GPL-2.0
/*
 * The first process of every guest: it mounts what is needed, does what the
 * file /workload in the initramfs names, and ends the guest. What a workload
 * reads from its environment stands on the kernel command line, which hands
 * such words on to this process.
 */
#include "init.h"

#include <elf.h>

int guest_status;

const char * const guest_cross_call[] = {
	"Function call interrupts",	/* x86, arm64 */
	"ipi call function",		/* powerpc, as an interrupt of its own */
	"Doorbell interrupts",		/* powerpc, all kinds */
	"XIVE-IPI",			/* powerpc, all kinds */
	"[EXT] External Call",		/* s390 */
	"[EXT] Emergency Signal",	/* s390 */
	NULL
};

void guest_end(void)
{
	guest_line("lazy-tlb-guest: done status=%d", guest_status);
	sync();
	/* Not all of them can be switched off. The emulator takes this as the end. */
	reboot(RB_AUTOBOOT);
	for (;;)
		pause();
}

void guest_cpus(struct lazy_cpus *cpus)
{
	if (lazy_cpus_get(cpus) < 2) {
		guest_problem("nothing can be measured on one CPU");
		guest_end();
	}
}

void *guest_shared(size_t size)
{
	void *area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (area == MAP_FAILED) {
		guest_problem("mmap: %s", strerror(errno));
		guest_end();
	}
	return area;
}

int guest_policies(char *policy[GUEST_MAX_POLICIES])
{
	char *list = getenv("LAZY_TLB_POLICIES"), *name;
	int nr = 0;

	for (name = strtok(list ?: "", ","); name && nr < GUEST_MAX_POLICIES;
	     name = strtok(NULL, ","))
		policy[nr++] = name;
	if (name)
		guest_problem("more than %d policies", nr);
	return nr;
}

void guest_go(int cpu)
{
	if (!lazy_pin(0, cpu))
		lazy_fail("cannot run on CPU %d: %s", cpu, strerror(errno));
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* Sorts them. */
double guest_median(double *values, long nr)
{
	qsort(values, nr, sizeof(*values), compare);
	return (values[(nr - 1) / 2] + values[nr / 2]) / 2;
}

/* ---- the smallest workloads ---------------------------------------------- */

static void visit_all(const struct lazy_cpus *cpus, void *unused)
{
	(void)unused;
	lazy_roam(cpus, cpus->nr - 1);
}

/*
 * It only has to come up and to end, with any kernel. A few processes leave lazy
 * CPUs behind first. With LAZY_TLB_WAIT=1 it does not end.
 */
static void alive(void)
{
	struct lazy_cpus cpus;
	int i;

	if (!lazy_cpus_get(&cpus))
		guest_problem("cannot tell the CPUs");
	for (i = 0; i < 20 && !guest_status; i++)
		if (lazy_run(&cpus, visit_all, NULL))
			guest_problem("process %d did not end well", i);
	while (lazy_env("LAZY_TLB_WAIT", 0))
		pause();
}

/*
 * /perf compares LAZY_TLB_POLICIES in all modes that it has, LAZY_TLB_ROUNDS
 * times. What it says gets a prefix.
 */
static void perf(void)
{
	const char *rounds = getenv("LAZY_TLB_ROUNDS"), *policies = getenv("LAZY_TLB_POLICIES");
	const char *const argv[] = {
		"perf", "bench", "-f", "simple", "sched", "lazy-tlb", "-i", rounds ?: "5",
		"--compare", policies ?: "", NULL
	};
	int fd[2], status = -1;
	char line[1024];
	FILE *said;
	pid_t pid;

	pid = pipe(fd) ? -1 : fork();
	if (!pid) {
		dup2(fd[1], STDOUT_FILENO);
		dup2(fd[1], STDERR_FILENO);
		close(fd[0]);
		close(fd[1]);
		execv("/perf", (char *const *)argv);
		lazy_fail("/perf: %s", strerror(errno));
	}
	close(fd[1]);
	said = pid > 0 ? fdopen(fd[0], "r") : NULL;
	while (said && fgets(line, sizeof(line), said)) {
		line[strcspn(line, "\n")] = '\0';
		guest_line("lazy-tlb-perf: %s", line);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
		guest_problem("perf ended with status %#x", status);
}

/* ---- the start ------------------------------------------------------------ */

static void mount_on(const char *dir, const char *type)
{
	if (mkdir(dir, 0755) && errno != EEXIST)
		guest_problem("mkdir %s: %s", dir, strerror(errno));
	/* EBUSY: the kernel or the initramfs did it already. */
	if (mount(type, dir, type, 0, NULL) && errno != EBUSY)
		guest_problem("mount %s on %s: %s", type, dir, strerror(errno));
}

/* Where an architecture has several, the kernel names the one it runs. */
static void say_mmu(void)
{
	char line[256], mmu[64] = "";
	FILE *file = fopen("/proc/cpuinfo", "r");

	while (file && fgets(line, sizeof(line), file) && sscanf(line, "MMU : %63s", mmu) != 1)
		;
	if (*mmu)
		guest_line("lazy-tlb-guest: mmu=%s", mmu);
	if (file)
		fclose(file);
}

/* Which kernel this is: its build ID, one of the notes of vmlinux. */
static void say_kernel(void)
{
	unsigned char notes[4096];
	size_t at = 0, name, i;
	int fd = open("/sys/kernel/notes", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, notes, sizeof(notes));
	char id[2 * 64 + 1] = "";
	Elf32_Nhdr head;	/* the same as Elf64_Nhdr */

	if (fd >= 0)
		close(fd);
	while (n > 0 && at + sizeof(head) <= (size_t)n) {
		memcpy(&head, notes + at, sizeof(head));
		name = at + sizeof(head);
		at = name + ((head.n_namesz + 3) & ~3);
		if (head.n_type == NT_GNU_BUILD_ID && head.n_descsz <= 64 &&
		    at + head.n_descsz <= (size_t)n && !memcmp(notes + name, "GNU", 4)) {
			for (i = 0; i < head.n_descsz; i++)
				sprintf(id + 2 * i, "%02x", notes[at + i]);
			guest_line("lazy-tlb-guest: build_id=%s", id);
			return;
		}
		at += (head.n_descsz + 3) & ~3;
	}
}

static const struct {
	const char *name;
	void (*fn)(void);
} workloads[] = {
	{ "alive", alive }, { "exit", exits }, { "ipis", ipis }, { "lines", lines },
	{ "load", load }, { "perf", perf }, { "run", run }, { "test", tests },
};

int main(int argc, char **argv)
{
	char name[32] = "";
	size_t i;
	int fd;

	/* The kernel hands words that it does not know to the first process. */
	if (getpid() != 1 && argc == 4 && !strcmp(argv[1], IPIS_WORK))
		return ipis_work(argv[2], argv[3]);
	if (getpid() != 1 && argc == 4 && !strcmp(argv[1], LOAD_WORK))
		return load_work(argv[2], argv[3]);
	/* Before anything is destroyed on a machine that is no guest. */
	if (getpid() != 1) {
		fprintf(stderr, "to be run as the first process of a guest\n");
		return 2;
	}
	umask(022);
	mount_on("/dev", "devtmpfs");
	fd = open("/dev/console", O_RDWR | O_NOCTTY);
	if (fd >= 0) {
		dup2(fd, STDIN_FILENO);
		dup2(fd, STDOUT_FILENO);
		dup2(fd, STDERR_FILENO);
		if (fd > STDERR_FILENO)
			close(fd);
	}
	mount_on("/proc", "proc");
	mount_on("/sys", "sysfs");
	mount_on("/sys/kernel/debug", "debugfs");
	mount_on("/tmp", "tmpfs");
	say_kernel();
	guest_line("lazy-tlb-guest: cpus=%ld", sysconf(_SC_NPROCESSORS_ONLN));
	say_mmu();
	lazy_read_file("/workload", name, sizeof(name));
	for (i = 0; i < sizeof(workloads) / sizeof(*workloads); i++) {
		if (strcmp(workloads[i].name, name))
			continue;
		workloads[i].fn();
		guest_end();
	}
	guest_problem("no workload is called \"%s\"", name);
	guest_end();
}
