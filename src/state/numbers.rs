//! The numbers that a process writes about itself into its record.

use std::time::Duration;

use super::memory::Memory;
use super::records::{Field, GAUGES, Record};

/// The number of flags that a process can have.
pub const MAX_FLAGS: usize = 63;
/// The bit of the flags word that is set once any flag was set or cleared.
const WRITTEN: u64 = 1 << MAX_FLAGS;

/// A value for each gauge; `None` for one that is not known.
pub type Gauges = [Option<u64>; GAUGES];

/// The numbers and flags of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbers {
    /// The time of the last heartbeat, in nanoseconds of the monotonic clock; 0 for none.
    pub beat: u64,
    /// The same in nanoseconds since 1970.
    pub beat_at: u64,
    /// A count, such as that of the requests served.
    pub count: u64,
    /// Values that go up and down, such as the number of open connections.
    pub gauges: Gauges,
    /// The flags, one bit each.
    pub flags: u64,
}

impl Numbers {
    /// Read the numbers in a record, if any were written.
    pub fn of(memory: Memory<'_>, record: Record) -> Option<Self> {
        let flags = record.get(memory, Field::Flags);
        let beat = record.get(memory, Field::Beat);
        let gauge = |number| record.get(memory, Field::Gauge(number)).checked_sub(1);
        (beat != 0 || flags != 0).then(|| Self {
            beat,
            beat_at: record.get(memory, Field::BeatAt),
            count: record.get(memory, Field::Count),
            gauges: std::array::from_fn(gauge),
            flags: flags & !WRITTEN,
        })
    }

    /// Return the time of the last heartbeat, in seconds of the monotonic clock.
    pub fn last_beat(&self) -> Option<f64> {
        (self.beat != 0).then(|| Duration::from_nanos(self.beat).as_secs_f64())
    }
}

/// Set the gauges whose values are known.
pub fn set_gauges(memory: Memory<'_>, record: Record, gauges: Gauges) {
    for (number, value) in gauges.into_iter().enumerate() {
        if let Some(value) = value {
            // 0 stands for a gauge that was never written.
            record.set(memory, Field::Gauge(number), value.saturating_add(1));
        }
    }
}

/// Set the flags `on` and clear the flags `off`.
pub fn set_flags(memory: Memory<'_>, record: Record, on: u64, off: u64) {
    record.set_bits(memory, Field::Flags, on | WRITTEN, off & !WRITTEN);
}
