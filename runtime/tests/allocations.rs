//! The data path allocates nothing per task once every slot has been used: counted, not claimed.
//!
//! The allocator counts what the worker threads ask for, on both sides of the tunnel. A first run
//! warms up; the second must not allocate more than a fixed handful for its channel, however many
//! tasks it carries.
#![expect(
    unsafe_code,
    reason = "an allocator that counts can only be written so"
)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use common::{Numbers, Pair};
use ramjet::handler::Placement;
use ramjet::worker::{Idle, IoKind};

struct Counting;

static COUNTED: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Whether this thread is on the data path, decided once by its name.
    static ON_DATA_PATH: std::cell::Cell<Option<bool>> = const { std::cell::Cell::new(None) };
}

fn on_data_path() -> bool {
    // `try_with`: a thread that is ending has no cell any more, and no tasks either.
    ON_DATA_PATH
        .try_with(|cell| {
            if let Some(known) = cell.get() {
                return known;
            }
            // Naming the thread may allocate; while it does, this thread counts as another.
            cell.set(Some(false));
            let thread = std::thread::current();
            let known = thread.name().is_some_and(|name| {
                name.starts_with("ramjet-worker") || name.starts_with("ramjet-pool")
            });
            cell.set(Some(known));
            known
        })
        .unwrap_or(false)
}

// SAFETY: every call is passed on to the system's allocator unchanged; counting touches no memory
// that it manages.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if on_data_path() {
            COUNTED.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's own promise about `layout`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's own promise: `pointer` came from `alloc` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of the data path over one engagement of `count` tasks.
fn counted(pair: &mut Pair, count: u64) -> u64 {
    let before = COUNTED.load(Ordering::Relaxed);
    let (totals, _) = pair.run(count, Numbers::new(64, count));
    assert_eq!(totals.accepted, count);
    COUNTED.load(Ordering::Relaxed) - before
}

fn no_allocation_per_task(io: IoKind, placement: Placement) {
    let mut pair = Pair::start(io, Idle::Adaptive, placement);
    pair.credits = 128;
    // An engagement allocates its slots and, in each, the copies that are kept: a fixed number.
    let warm = counted(&mut pair, 20_000);
    assert!(warm > 0, "the counter sees the data path");
    let short = counted(&mut pair, 5_000);
    let long = counted(&mut pair, 200_000);
    // 195,000 more tasks. Reports go to control about every 200 ms and may box a message each; a
    // single allocation in a thousand tasks would show as 195.
    assert!(
        long <= short + 64,
        "{short} allocations with 5,000 tasks, {long} with 200,000: something allocates per task"
    );
    pair.stop();
}

#[test]
fn io_uring_inline_allocates_nothing_per_task() {
    no_allocation_per_task(IoKind::Uring, Placement::Inline);
    // One after the other: the count is of the whole process.
    no_allocation_per_task(IoKind::Mmsg, Placement::Inline);
    no_allocation_per_task(IoKind::Uring, Placement::Pool);
}
