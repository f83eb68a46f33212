//! Real processes over shared memory, killed and stopped at any moment.

use std::fs::File;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::*;
use crate::state::reclaim;
use crate::state::records::Record;

const CHILDREN: usize = 3;
const PATIENCE: Duration = Duration::from_secs(20);

/// Memory shared with forked children.
pub struct Shared {
    start: *mut AtomicU64,
    layout: Layout,
}

impl Shared {
    pub fn new(layout: Layout) -> Self {
        let size = layout.words() * size_of::<AtomicU64>();
        let file = File::from(rustix::fs::memfd_create("table", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(size as u64).unwrap();
        let (access, how) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: the kernel chooses an address where nothing else is mapped.
        let start = unsafe { mmap(std::ptr::null_mut(), size, access, how, file.as_fd(), 0) };
        let shared = Self {
            start: start.unwrap().cast(),
            layout,
        };
        Memory::new(shared.words(), layout).unwrap();
        shared
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: that many words are mapped until this is dropped.
        unsafe { std::slice::from_raw_parts(self.start, self.layout.words()) }
    }

    pub fn memory(&self) -> Memory<'_> {
        Memory::reopen(self.words(), self.layout)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the memory was mapped with this size.
        unsafe {
            munmap(
                self.start.cast(),
                self.layout.words() * size_of::<AtomicU64>(),
            )
        }
        .unwrap();
    }
}

/// A process that writes until it is killed.
struct Child {
    number: usize,
    pid: Pid,
}

impl Child {
    fn new(shared: &Shared, number: usize) -> Self {
        // SAFETY: the child uses only this memory and its own heap, and never returns.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            write_for_ever(shared.memory(), number);
        }
        let pid = Pid::from_raw(pid).unwrap();
        Self { number, pid }
    }

    fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    fn kill(&self, shared: &Shared) {
        kill_process(self.pid, Signal::KILL).unwrap();
        waitpid(Some(self.pid), WaitOptions::empty()).unwrap();
        reclaim::reclaim(shared.memory(), |identity| identity.pid == self.id());
    }
}

fn write_for_ever(memory: Memory<'_>, number: usize) -> ! {
    let pid = std::process::id();
    let identity = Identity { pid, started: 0 };
    let mut writer =
        Writer::new(Record::claim(memory, identity).map_or_else(|| stop(), |record| record.serial));
    let own = format!("own-{number}");
    let before = read(memory, "shared").and_then(|entry| entry.get(&own).map(|bytes| count(bytes)));
    for count in before.unwrap_or_default() + 1.. {
        let byte = u8::try_from(count % 256).unwrap_or_default();
        let both = vec![byte; size(byte)];
        let pairs: [(&str, &[u8]); 3] = [("a", &both), ("b", &both), (&own, &count.to_le_bytes())];
        let _ = merge(&mut writer, memory, "shared", &pairs);
        match count % 5 {
            0 => drop(remove(&mut writer, memory, "comes and goes")),
            1 => drop(put(&mut writer, memory, "comes and goes", &pairs)),
            _ => drop(merge(&mut writer, memory, "comes and goes", &pairs)),
        }
    }
    stop()
}

pub fn stop() -> ! {
    // SAFETY: the process is meant to end at once.
    unsafe { libc::_exit(1) }
}

fn size(byte: u8) -> usize {
    if byte == 77 {
        20_000
    } else {
        1 + usize::from(byte) * 3
    }
}

fn count(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().unwrap_or_default())
}

/// Check all entries; return the count of each child.
fn look(memory: Memory<'_>) -> [u64; CHILDREN] {
    for name in ["shared", "comes and goes"] {
        let Some(entry) = read(memory, name) else {
            continue;
        };
        assert_eq!(entry.get("a"), entry.get("b"), "half a merge");
        if let Some(value) = entry.get("a") {
            assert!(value.iter().all(|byte| *byte == value[0]), "torn");
            assert_eq!(value.len(), size(value[0]));
        }
    }
    let entry = read(memory, "shared").unwrap();
    std::array::from_fn(|number| {
        entry
            .get(&format!("own-{number}"))
            .map_or(0, |it| count(it))
    })
}

pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

pub fn soak_rounds() -> u64 {
    std::env::var("SOAK_ROUNDS").map_or(2, |rounds| rounds.parse().unwrap())
}

#[test]
fn a_process_killed_or_stopped_at_any_moment_blocks_no_other() {
    let soak = soak_rounds();
    let shared = Shared::new(Layout {
        buckets: 64,
        processes: 16,
        sheets: 0,
        segments: 512,
    });
    let memory = shared.memory();
    put(&mut Writer::new(1 << 40), memory, "shared", &[]).unwrap();
    let mut children: Vec<Child> = (0..CHILDREN).map(|one| Child::new(&shared, one)).collect();
    let mut random = Random(42);
    let mut last = [0; CHILDREN];
    let mut watch = || {
        let now = look(memory);
        for (last, now) in last.iter().zip(now) {
            assert!(*last <= now, "something was lost");
        }
        last = now;
        now
    };
    for _ in 0..soak * 100 {
        for _ in 0..random.below(200) {
            watch();
        }
        let victim = &children[usize::try_from(random.below(CHILDREN as u64)).unwrap()];
        let number = victim.number;
        if random.below(2) == 0 {
            kill_process(victim.pid, Signal::STOP).unwrap();
            let before = watch();
            let deadline = Instant::now() + PATIENCE;
            let others_go_on = |now: [u64; CHILDREN]| {
                (0..CHILDREN).all(|one| one == number || now[one] > before[one] + 2)
            };
            while !others_go_on(watch()) {
                assert!(Instant::now() < deadline, "blocked by a stopped process");
            }
        }
        // A stopped process is killed, too.
        if random.below(2) == 0 {
            victim.kill(&shared);
            children[number] = Child::new(&shared, number);
        } else {
            kill_process(victim.pid, Signal::CONT).unwrap();
        }
    }
    for child in &children {
        child.kill(&shared);
    }
    watch();
    let mut writer = Writer::new(1 << 41);
    for name in ["shared", "comes and goes"] {
        let _ = remove(&mut writer, memory, name);
    }
    abandon(memory, 1 << 40);
    abandon(memory, 1 << 41);
    assert!(fits(memory, 1 << 42, 10_000) >= 512 - 16 - 8);
}
