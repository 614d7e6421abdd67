// SPDX-License-Identifier: GPL-2.0
/*
 * `bench lines`. Pairs of pinned threads of one process hand a byte to and fro
 * through pipes, the two ends of a pair on different CPUs: each trip goes from
 * user to idle and back. Then processes exit that no, three or all other CPUs
 * are lazy on; one is forked; one with lazy CPUs unmaps memory.
 *
 * An emulator's plugin counts from lines_begin() on to lines_end(). What it
 * cannot know is printed, as `lazy-tlb-lines: what=... key=value ...` lines.
 *
 * LAZY_TLB_POLICIES (none: the one of this boot), LAZY_TLB_TRIPS (of each thread,
 * 100), LAZY_TLB_LIVES (exits, forks and unmaps of each kind that are counted, 0).
 * LAZY_TLB_CGROUP=1 runs it in a cgroup with the controller cpu, not in the root.
 * From the file /layout: where things are in the kernel.
 */
#include "lines.h"

#include <elf.h>

#define WARM_UP		20
#define MOST_TASKS	1000

/* ---- marks -------------------------------------------------------------- */

/* The plugin knows their addresses. */
#define MARK(name)							\
__attribute__((noinline, noclone)) void name(void)			\
{									\
	asm volatile("" : : : "memory");				\
}

MARK(lines_arm)
MARK(lines_begin)
MARK(lines_end)

/* ---- the kernel's memory ------------------------------------------------ */

/* From the file /layout; 0 where the kernel has no such thing. */
static unsigned long layout(const char *key)
{
	static char buf[4096];
	char *line = buf;
	size_t len = strlen(key);

	if (!*buf && !lazy_read_file("/layout", buf, sizeof(buf)))
		guest_problem("cannot read /layout: %s", strerror(errno));
	while (line) {
		if (!strncmp(line, key, len) && line[len] == '=')
			return strtoul(line + len + 1, NULL, 0);
		line = strchr(line, '\n');
		if (line)
			line++;
	}
	return 0;
}

/*
 * The same for 32-bit arm, which has no /proc/kcore: the linear map is as high
 * above its memory as the kernel's code is.
 */
static unsigned long peek_memory(unsigned long address)
{
	static unsigned long code;
	static int fd = -1;
	uint32_t word = 0;
	char line[128];
	FILE *memory;

	if (fd < 0) {
		fd = open("/dev/mem", O_RDONLY | O_CLOEXEC);
		memory = fopen("/proc/iomem", "re");
		while (memory && fgets(line, sizeof(line), memory))
			if (strstr(line, ": Kernel code"))
				code = strtoul(line, NULL, 16);
		if (memory)
			fclose(memory);
	}
	if (!code || pread(fd, &word, sizeof(word), address - layout("_text") + code) !=
	    sizeof(word))
		return 0;
	return word;
}

/* A word of the kernel at a virtual address, 0 where there is none. */
static unsigned long peek(unsigned long address, size_t size)
{
	static Elf64_Phdr segment[64];
	static int fd, nr;
	uint64_t word = 0;
	Elf64_Ehdr header;
	uint32_t half = 0;
	int i;

	if (sizeof(long) == sizeof(half))
		return peek_memory(address);
	if (!nr) {
		fd = open("/proc/kcore", O_RDONLY | O_CLOEXEC);
		if (fd < 0 || pread(fd, &header, sizeof(header), 0) != sizeof(header) ||
		    header.e_phnum > 64 ||
		    pread(fd, segment, header.e_phnum * sizeof(*segment), header.e_phoff) < 0)
			return 0;
		nr = header.e_phnum;
	}
	for (i = 0; i < nr; i++) {
		unsigned long at = address - segment[i].p_vaddr;

		if (segment[i].p_type != PT_LOAD || address < segment[i].p_vaddr ||
		    at >= segment[i].p_memsz)
			continue;
		if (size == sizeof(half))
			return pread(fd, &half, size, segment[i].p_offset + at) == 4 ? half : 0;
		return pread(fd, &word, size, segment[i].p_offset + at) == 8 ? word : 0;
	}
	return 0;
}

/* The newest of the kernel's tasks is at the end of its list. */
unsigned long lines_mm(pid_t pid)
{
	unsigned long head = layout("init_task") + layout("task_struct.tasks");
	unsigned long at = head, task;
	int i;

	for (i = 0; i < MOST_TASKS; i++) {
		at = peek(at + sizeof(long), sizeof(long));
		task = at - layout("task_struct.tasks");
		if (!at || at == head)
			break;
		if (peek(task + layout("task_struct.pid"), 4) == (unsigned long)pid)
			return peek(task + layout("task_struct.mm"), sizeof(long));
	}
	return 0;
}

/* How long an mm_struct is, its masks of CPUs at the end included. */
static unsigned long mm_size(void)
{
	unsigned long cache = peek(layout("mm_cachep"), sizeof(long));

	return peek(cache + layout("kmem_cache.object_size"), 4);
}

/* How often any CPU went from one task to another. */
long lines_switches(void)
{
	static char buf[256 * 1024];
	char *line;

	if (!lazy_read_file("/proc/stat", buf, sizeof(buf)))
		return 0;
	line = strstr(buf, "\nctxt ");
	return line ? strtol(line + 6, NULL, 10) : 0;
}

/* ---- trips -------------------------------------------------------------- */

/* As wide as the widest line there is. */
struct traveller {
	int in, out;
	int cpu;
	pthread_t thread;
	atomic_long trips;
} __attribute__((aligned(256)));

static struct traveller *travellers;
static int nr_travellers;
static atomic_bool stop;

static long all_trips(void)
{
	long sum = 0;
	int i;

	for (i = 0; i < nr_travellers; i++)
		sum += atomic_load(&travellers[i].trips);
	return sum;
}

#define LAST	1

static void give(struct traveller *self, char byte)
{
	if (write(self->out, &byte, 1) != 1)
		lazy_fail("write: %s", strerror(errno));
}

/* Waits for it: this is the trip. */
static char take(struct traveller *self)
{
	char byte;

	if (read(self->in, &byte, 1) != 1)
		lazy_fail("read: %s", strerror(errno));
	atomic_store_explicit(&self->trips, atomic_load(&self->trips) + 1,
			      memory_order_relaxed);
	return byte;
}

/* Even travellers send first. The first of all says when counting begins and ends. */
static void *travel(void *arg)
{
	struct traveller *self = arg;
	long trips = 0, count = lazy_env("LAZY_TLB_TRIPS", 100), switched = 0, begun = 0;
	bool first = self == travellers;
	bool sends = (self - travellers) % 2 == 0;
	char byte;

	guest_go(self->cpu);
	for (;;) {
		if (first && trips == WARM_UP) {
			lines_arm();
		} else if (first && trips == 2 * WARM_UP) {
			switched = lines_switches();
			begun = all_trips();
			lines_begin();
		} else if (first && trips == 2 * WARM_UP + count) {
			lines_end();
			begun = all_trips() - begun;
			switched = lines_switches() - switched;
			guest_line("lazy-tlb-lines: what=trips trips=%ld switches=%ld",
				   begun, switched);
			atomic_store(&stop, true);
		}
		if (sends) {
			byte = atomic_load(&stop) ? LAST : 0;
			give(self, byte);
		}
		if (!sends || byte != LAST)
			byte = take(self);
		if (byte == LAST)
			return NULL;
		if (!sends)
			give(self, byte);
		trips++;
	}
}

/* What is counted next, of whose mm. */
void lines_announce(const char *name, const struct lazy_cpus *cpus, unsigned long mm)
{
	char policy[32] = "";

	if (!lazy_policy(policy, sizeof(policy)))
		strcpy(policy, "off");
	guest_line("lazy-tlb-lines: what=case name=%s policy=%s cpus=%d mm=%#lx size=%lu",
		   name, policy, cpus->nr, mm, mm_size());
}

static void announce(const char *name, const struct lazy_cpus *cpus)
{
	lines_announce(name, cpus, lines_mm(getpid()));
}

static void trips(const struct lazy_cpus *cpus, void *unused)
{
	int i, there[2], back[2];

	(void)unused;
	nr_travellers = cpus->nr / 2 * 2;
	travellers = mmap(NULL, nr_travellers * sizeof(*travellers), PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (travellers == MAP_FAILED)
		lazy_fail("mmap: %s", strerror(errno));
	announce("trip", cpus);
	for (i = 0; i < nr_travellers; i += 2) {
		if (pipe(there) || pipe(back))
			lazy_fail("pipe: %s", strerror(errno));
		travellers[i] = (struct traveller){
			.in = back[0], .out = there[1], .cpu = cpus->cpu[i] };
		travellers[i + 1] = (struct traveller){
			.in = there[0], .out = back[1], .cpu = cpus->cpu[i + 1] };
	}
	/* The first last: it is the one that counts. */
	for (i = nr_travellers - 1; i >= 0; i--)
		if (pthread_create(&travellers[i].thread, NULL, travel, &travellers[i]))
			lazy_fail("pthread_create: %s", strerror(errno));
	for (i = 0; i < nr_travellers; i++)
		pthread_join(travellers[i].thread, NULL);
}

/* ---- exits, forks, unmaps ------------------------------------------------ */

#define LIVES_WARM_UP	2
#define UNMAPPED	(64UL * 1024)

/* One that was counted, as all lines above are per trip. */
static void counted(void)
{
	guest_line("lazy-tlb-lines: what=trips trips=1 switches=0");
}

static void settle(const struct lazy_cpus *cpus)
{
	guest_go(cpus->cpu[0]);
	usleep(1000);
}

/* Leaves some CPUs, which then are idle and lazy on the mm of this process. */
static void visit(const struct lazy_cpus *cpus, int nr)
{
	int i;

	for (i = 1; i <= nr; i++)
		guest_go(cpus->cpu[i]);
	settle(cpus);
}

/*
 * With some policies the last of the lazy CPUs frees the mm. If this is to be
 * counted as well, each has something to do before it is over.
 */
static void deaths(const struct lazy_cpus *cpus, const char *name, int lazies, int lives,
		   bool until_freed)
{
	bool count;
	pid_t pid;
	int i;

	settle(cpus);
	for (i = 0; i < LIVES_WARM_UP + lives; i++) {
		count = i >= LIVES_WARM_UP;
		pid = fork();
		if (pid < 0)
			lazy_fail("fork: %s", strerror(errno));
		if (!pid) {
			if (count)
				announce(name, cpus);
			visit(cpus, lazies);
			if (count)
				lines_begin();
			_exit(0);
		}
		if (waitpid(pid, NULL, 0) != pid)
			lazy_fail("waitpid: %s", strerror(errno));
		if (until_freed)
			visit(cpus, lazies);
		lines_end();
		if (count)
			counted();
	}
}

static void forks(const struct lazy_cpus *cpus, int lives)
{
	pid_t pid;
	int i;

	for (i = 0; i < LIVES_WARM_UP + lives; i++) {
		if (i >= LIVES_WARM_UP) {
			announce("fork", cpus);
			lines_begin();
		}
		pid = fork();
		if (pid < 0)
			lazy_fail("fork: %s", strerror(errno));
		if (!pid)
			_exit(0);
		lines_end();
		if (waitpid(pid, NULL, 0) != pid)
			lazy_fail("waitpid: %s", strerror(errno));
		if (i >= LIVES_WARM_UP)
			counted();
	}
}

static void unmaps(const struct lazy_cpus *cpus, int lives)
{
	char *there;
	int i;

	for (i = 0; i < LIVES_WARM_UP + lives; i++) {
		visit(cpus, cpus->nr - 1);
		there = mmap(NULL, UNMAPPED, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
		if (there == MAP_FAILED)
			lazy_fail("mmap: %s", strerror(errno));
		if (i >= LIVES_WARM_UP) {
			announce("munmap", cpus);
			lines_begin();
		}
		munmap(there, UNMAPPED);
		lines_end();
		if (i >= LIVES_WARM_UP)
			counted();
	}
}

static void lives(const struct lazy_cpus *cpus, void *unused)
{
	int nr = lazy_env("LAZY_TLB_LIVES", 0);

	(void)unused;
	if (!nr)
		return;
	deaths(cpus, "exit-none", 0, nr, false);
	if (cpus->nr > 4)
		deaths(cpus, "exit-3", 3, nr, false);
	deaths(cpus, "exit-all", cpus->nr - 1, nr, false);
	deaths(cpus, "exit+free-all", cpus->nr - 1, nr, true);
	forks(cpus, nr);
	unmaps(cpus, nr);
}

/* ---- the run ------------------------------------------------------------ */

#define CGROUPS		"/cgroups"
#define CGROUP		CGROUPS "/travellers"

static void enter_cgroup(void)
{
	if (mkdir(CGROUPS, 0755) || mount("none", CGROUPS, "cgroup2", 0, NULL) ||
	    mkdir(CGROUP, 0755) ||
	    !lazy_write_file(CGROUPS "/cgroup.subtree_control", "+cpu") ||
	    !lazy_write_file(CGROUP "/cgroup.procs", "0"))
		guest_problem("cannot enter a cgroup: %s", strerror(errno));
}

int lines_start(struct lazy_cpus *cpus, char *policy[GUEST_MAX_POLICIES])
{
	unsigned long offsets;
	int i;

	/* The kernel's last lines are still on their way to the console, and would cut ours. */
	usleep(200 * 1000);
	guest_cpus(cpus);
	if (lazy_env("LAZY_TLB_CGROUP", 0))
		enter_cgroup();
	offsets = layout("__per_cpu_offset");
	for (i = 0; offsets && i < cpus->nr; i++)
		guest_line("lazy-tlb-lines: what=percpu cpu=%d offset=%#lx", cpus->cpu[i],
			   peek(offsets + cpus->cpu[i] * sizeof(long), sizeof(long)));
	return guest_policies(policy);
}

void lines_turn(char *policy)
{
	if (!lazy_set_policy(policy))
		guest_problem("cannot set the policy %s: %s", policy, strerror(errno));
}

void lines(void)
{
	char *policy[GUEST_MAX_POLICIES];
	struct lazy_cpus cpus;
	int nr, i;

	nr = lines_start(&cpus, policy);
	for (i = 0; i < nr || !i; i++) {
		if (nr)
			lines_turn(policy[i]);
		if (lazy_run(&cpus, trips, NULL) || lazy_run(&cpus, lives, NULL))
			guest_problem("the workload of turn %d failed", i);
	}
}
