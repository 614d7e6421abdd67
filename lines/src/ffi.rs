//! The emulator's side: its functions, and those that it calls.
//!
//! Few enough to declare here: the bindings on crates.io are for one version of the API each and need a
//! newer rustc than the workspace. Not all are of the plugin API: QEMU 10 tells a plugin the CPU that
//! translated a block, not the one that runs it, where all CPUs are in one thread (`gen_cpu_index()`).
//! Debian's exports its own functions to its modules, and so to a plugin.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_uint, c_void, CStr};
use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock};

use crate::count::Counts;
use crate::kind::{kind, kind_of_arm64, Kind};
use crate::model::{Access, CPUS};

type Id = u64;
type Simple = extern "C" fn(Id);
type OnTranslation = extern "C" fn(Id, *mut Tb);
type OnExec = extern "C" fn(c_uint, *mut c_void);
type OnMemory = extern "C" fn(c_uint, u32, u64, *mut c_void);

/// Opaque.
#[repr(C)]
struct Tb([u8; 0]);
/// Opaque.
#[repr(C)]
struct Insn([u8; 0]);
/// Opaque.
#[repr(C)]
struct HwAddr([u8; 0]);
/// Opaque.
#[repr(C)]
struct Cpu([u8; 0]);
/// The beginning of `qemu_info_t`.
#[repr(C)]
pub struct Info {
    target: *const c_char,
}

/// `QEMU_PLUGIN_CB_NO_REGS`
const NO_REGS: c_int = 0;
/// How many instructions a CPU's turn is while nothing is counted.
const BOOT_TURN: usize = 20_000;
/// `QEMU_PLUGIN_MEM_RW`
const READS_AND_WRITES: c_int = 3;

extern "C" {
    fn qemu_plugin_register_vcpu_tb_trans_cb(id: Id, cb: OnTranslation);
    fn qemu_plugin_register_vcpu_tb_exec_cb(
        tb: *mut Tb,
        cb: OnExec,
        flags: c_int,
        data: *mut c_void,
    );
    fn qemu_plugin_register_vcpu_insn_exec_cb(
        insn: *mut Insn,
        cb: OnExec,
        flags: c_int,
        data: *mut c_void,
    );
    fn qemu_plugin_register_vcpu_mem_cb(
        insn: *mut Insn,
        cb: OnMemory,
        flags: c_int,
        rw: c_int,
        data: *mut c_void,
    );
    fn qemu_plugin_reset(id: Id, cb: Simple);
    fn qemu_plugin_tb_n_insns(tb: *const Tb) -> usize;
    fn qemu_plugin_tb_get_insn(tb: *const Tb, at: usize) -> *mut Insn;
    fn qemu_plugin_insn_vaddr(insn: *const Insn) -> u64;
    fn qemu_plugin_insn_disas(insn: *const Insn) -> *mut c_char;
    #[cfg(feature = "qemu7")]
    fn qemu_plugin_insn_data(insn: *const Insn) -> *const u8;
    #[cfg(not(feature = "qemu7"))]
    fn qemu_plugin_insn_data(insn: *const Insn, to: *mut u8, most: usize) -> usize;
    fn qemu_plugin_mem_is_store(info: u32) -> bool;
    fn qemu_plugin_get_hwaddr(info: u32, vaddr: u64) -> *mut HwAddr;
    fn qemu_plugin_hwaddr_is_io(addr: *const HwAddr) -> bool;
    fn qemu_plugin_hwaddr_phys_addr(addr: *const HwAddr) -> u64;
    fn qemu_get_cpu(index: c_int) -> *mut Cpu;
    fn cpu_exit(cpu: *mut Cpu);
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    fn free(memory: *mut c_void);
}

/// Which API this is for: the emulator looks it up.
#[no_mangle]
#[allow(non_upper_case_globals)]
pub static qemu_plugin_version: c_int = if cfg!(feature = "qemu7") { 1 } else { 4 };

/// What the arguments say.
struct Setup {
    id: Id,
    target: String,
    arm: u64,
    begin: u64,
    end: u64,
    out: Mutex<File>,
}

static SETUP: OnceLock<Setup> = OnceLock::new();
static COUNTS: Mutex<Option<Counts>> = Mutex::new(None);

fn setup() -> &'static Setup {
    SETUP.get().expect("the plugin is installed")
}

/// Where the thread that runs all CPUs has the one that it runs.
static CURRENT: AtomicPtr<*mut Cpu> = AtomicPtr::new(std::ptr::null_mut());
/// That CPU and its number, as they were last seen.
static LAST: (AtomicPtr<Cpu>, AtomicUsize) =
    (AtomicPtr::new(std::ptr::null_mut()), AtomicUsize::new(0));

/// The CPU that runs.
fn current() -> *mut Cpu {
    if CURRENT.load(Relaxed).is_null() {
        // SAFETY: an ordinary call; of a variable of each thread it returns this one's.
        let current = unsafe { dlsym(std::ptr::null_mut(), c"current_cpu".as_ptr()) };
        if current.is_null() {
            eprintln!("lines: this emulator does not say which CPU it runs");
            std::process::abort();
        }
        CURRENT.store(current.cast(), Relaxed);
    }
    // SAFETY: it is a variable of this thread, which is the only one to run a CPU.
    unsafe { *CURRENT.load(Relaxed) }
}

/// Its number.
fn number() -> usize {
    let cpu = current();
    if cpu != LAST.0.load(Relaxed) {
        // SAFETY: an ordinary call.
        let is_it = |i: &usize| unsafe { qemu_get_cpu(*i as c_int) } == cpu;
        let found = (0..CPUS)
            .find(is_it)
            .unwrap_or_else(|| std::process::abort());
        LAST.0.store(cpu, Relaxed);
        LAST.1.store(found, Relaxed);
    }
    LAST.1.load(Relaxed)
}

/// Does something with the counts. A panic must not go through the emulator: there is none to go on.
fn with_counts<T>(what: impl FnOnce(&mut Counts) -> T) -> T {
    let mut counts = COUNTS.lock().unwrap_or_else(|_| std::process::abort());
    what(counts.as_mut().expect("the plugin is installed"))
}

/// What the emulator calls first.
///
/// # Safety
///
/// The emulator's own: `info` and `argv` are as its documentation says.
#[no_mangle]
pub unsafe extern "C" fn qemu_plugin_install(
    id: Id,
    info: *const Info,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    // SAFETY: the emulator's strings, which outlive this call.
    let text = |chars| {
        unsafe { CStr::from_ptr(chars) }
            .to_string_lossy()
            .into_owned()
    };
    // SAFETY: there are `argc` of them.
    let args: Vec<String> = (0..argc as usize)
        .map(|i| text(unsafe { *argv.add(i) }))
        .collect();
    // SAFETY: the emulator's own.
    let target = text(unsafe { (*info).target });
    match install(id, target, &args) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("lines: {error}");
            1
        }
    }
}

fn install(id: Id, target: String, args: &[String]) -> Result<(), String> {
    let value = |key: &str| {
        let of = |arg: &'_ String| Some(arg.strip_prefix(key)?.strip_prefix('=')?.to_owned());
        args.iter().find_map(of).ok_or(format!("no {key}="))
    };
    let number = |key: &str| {
        let text = value(key)?;
        let read = match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => text.parse(),
        };
        read.map_err(|error| format!("{key}={text}: {error}"))
    };
    let out = value("out")?;
    let file = File::create(&out).map_err(|error| format!("{out}: {error}"))?;
    let counts = Counts::new(number("line")?, number("turn")?, number("seed")?);
    *COUNTS.lock().map_err(|error| error.to_string())? = Some(counts);
    let setup = Setup {
        id,
        target,
        arm: number("arm")?,
        begin: number("begin")?,
        end: number("end")?,
        out: Mutex::new(file),
    };
    SETUP.set(setup).map_err(|_| "installed twice")?;
    // SAFETY: an ordinary call. Booting is not looked at, so that it is as fast as without.
    unsafe { qemu_plugin_register_vcpu_tb_trans_cb(id, look_for_arm) };
    Ok(())
}

/// Each instruction of a block, and where it is.
fn insns(tb: *const Tb) -> impl Iterator<Item = (*mut Insn, u64)> {
    // SAFETY: the emulator's own block, while it translates it.
    let nr = unsafe { qemu_plugin_tb_n_insns(tb) };
    (0..nr).map(move |i| unsafe {
        let insn = qemu_plugin_tb_get_insn(tb, i);
        (insn, qemu_plugin_insn_vaddr(insn))
    })
}

extern "C" fn look_for_arm(_: Id, tb: *mut Tb) {
    // SAFETY: here and below: the emulator's own block and its instructions, while it translates them.
    unsafe {
        let nr = qemu_plugin_tb_n_insns(tb);
        qemu_plugin_register_vcpu_tb_exec_cb(tb, boot, NO_REGS, as_data(nr));
    }
    for (insn, _) in insns(tb).filter(|(_, at)| *at == setup().arm) {
        unsafe { qemu_plugin_register_vcpu_insn_exec_cb(insn, arm, NO_REGS, std::ptr::null_mut()) };
    }
}

/// The emulator's own turns are of a tenth of a second: a CPU that waits for another waits for long.
extern "C" fn boot(_: c_uint, insns: *mut c_void) {
    static RUN: AtomicUsize = AtomicUsize::new(0);
    let run = RUN.load(Relaxed) + insns.addr();
    RUN.store(run % BOOT_TURN, Relaxed);
    if run >= BOOT_TURN {
        // SAFETY: an ordinary call. The next CPU gets its turn after this block.
        unsafe { cpu_exit(current()) };
    }
}

extern "C" fn arm(_: c_uint, _: *mut c_void) {
    // SAFETY: an ordinary call. All blocks are translated anew.
    unsafe { qemu_plugin_reset(setup().id, armed) };
}

extern "C" fn armed(id: Id) {
    // SAFETY: an ordinary call.
    unsafe { qemu_plugin_register_vcpu_tb_trans_cb(id, translate) };
}

/// The first four bytes of an instruction that has as many.
///
/// # Safety
///
/// The emulator translates it now.
unsafe fn first_bytes(insn: *const Insn) -> [u8; 4] {
    let mut bytes = [0; 4];
    // SAFETY: the emulator's own instruction, as the caller says; every one of aarch64 has four bytes, and only those
    // are looked at.
    unsafe {
        #[cfg(feature = "qemu7")]
        std::ptr::copy_nonoverlapping(qemu_plugin_insn_data(insn), bytes.as_mut_ptr(), 4);
        #[cfg(not(feature = "qemu7"))]
        qemu_plugin_insn_data(insn, bytes.as_mut_ptr(), bytes.len());
    }
    bytes
}

fn as_data(number: usize) -> *mut c_void {
    std::ptr::without_provenance_mut(number)
}

extern "C" fn translate(_: Id, tb: *mut Tb) {
    let setup = setup();
    let at = insns(tb).next().map_or(0, |(_, at)| at);
    let block = with_counts(|counts| counts.block(at, insns(tb).count() as u64));
    // SAFETY: here and below: the emulator's own block and its instructions, while it translates them.
    unsafe { qemu_plugin_register_vcpu_tb_exec_cb(tb, run, NO_REGS, as_data(block)) };
    for (insn, at) in insns(tb) {
        let kind = unsafe {
            let text = qemu_plugin_insn_disas(insn);
            let said = kind(&setup.target, &CStr::from_ptr(text).to_string_lossy());
            free(text.cast());
            match setup.target.as_str() {
                "aarch64" => kind_of_arm64(u32::from_le_bytes(first_bytes(insn))).unwrap_or(said),
                _ => said,
            }
        };
        let data = as_data(with_counts(|counts| counts.number((at, kind))) as usize);
        let mark = match at {
            _ if at == setup.begin => Some(begin as OnExec),
            _ if at == setup.end => Some(end as OnExec),
            _ => None,
        };
        let special = (kind != Kind::Plain).then_some(special as OnExec);
        for cb in mark.into_iter().chain(special) {
            unsafe { qemu_plugin_register_vcpu_insn_exec_cb(insn, cb, NO_REGS, data) };
        }
        unsafe { qemu_plugin_register_vcpu_mem_cb(insn, memory, NO_REGS, READS_AND_WRITES, data) };
    }
}

extern "C" fn run(_: c_uint, block: *mut c_void) {
    if with_counts(|counts| counts.run(number(), block.addr())) {
        // SAFETY: an ordinary call. The next CPU gets its turn after this block.
        unsafe { cpu_exit(current()) };
    }
}

extern "C" fn special(_: c_uint, insn: *mut c_void) {
    with_counts(|counts| counts.special(number(), insn.addr() as u32));
}

extern "C" fn memory(_: c_uint, info: u32, virt: u64, insn: *mut c_void) {
    // SAFETY: the emulator's own access, while it makes it.
    let (write, phys) = unsafe {
        let addr = qemu_plugin_get_hwaddr(info, virt);
        if addr.is_null() || qemu_plugin_hwaddr_is_io(addr) {
            return;
        }
        (
            qemu_plugin_mem_is_store(info),
            qemu_plugin_hwaddr_phys_addr(addr),
        )
    };
    let (cpu, insn) = (number(), insn.addr() as u32);
    with_counts(|counts| {
        counts.access(Access {
            cpu,
            phys,
            virt,
            insn,
            write,
        })
    });
}

extern "C" fn begin(_: c_uint, _: *mut c_void) {
    with_counts(Counts::begin);
}

extern "C" fn end(_: c_uint, _: *mut c_void) {
    if let Some(text) = with_counts(Counts::end) {
        let mut out = setup().out.lock().unwrap_or_else(|_| std::process::abort());
        if let Err(error) = out.write_all(text.as_bytes()) {
            eprintln!("lines: {error}");
        }
    }
}
