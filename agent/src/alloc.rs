//! The allocator: the system's, plus a few freed blocks of each size for each thread that serves clients.
//!
//! musl's has one lock for all threads, and maps and unmaps pages for what a connection needs for a
//! millisecond. Another complete allocator would keep megabytes for each thread, in an agent that has one.
//!
//! Sizes are rounded in the same way on allocation and release, so a thread may keep blocks that others
//! allocated. Other threads return theirs to the system at once.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr::null_mut;

/// The largest cached block, and the rounding of sizes, which is what musl does with small ones.
const LARGEST: usize = 4096;
const STEP: usize = 16;

/// Alignments of cached blocks: that of any block, and the one of tokio's tasks and sockets.
const USUAL: usize = 16;
const WIDE: usize = 128;

const SIZES: usize = LARGEST / STEP;

/// Most blocks of each size and alignment that a thread keeps: a megabyte or two if it uses all sizes, while
/// connections use eight or so.
const KEPT: u32 = 16;

/// See the module.
pub(crate) struct Blocks;

/// A list of free blocks, each of which begins with the address of the next.
#[derive(Clone, Copy)]
struct List {
    first: *mut u8,
    count: u32,
}

type Lists = [List; SIZES * 2];

thread_local! {
    // Without a destructor, so that it can be accessed at any time.
    static LISTS: Cell<*mut Lists> = const { Cell::new(null_mut()) };
}

/// Makes this thread keep freed blocks. They are never returned: for threads that live as long as the
/// process.
pub(crate) fn keep() {
    if LISTS.get().is_null() {
        LISTS.set(Box::leak(Box::new([List { first: null_mut(), count: 0 }; SIZES * 2])));
    }
}

/// The index of a list, and the layout of its blocks; `None` for blocks that are never kept.
fn class(layout: Layout) -> Option<(usize, Layout)> {
    let (size, align) = (layout.size(), layout.align());
    if size == 0 || size > LARGEST || align > WIDE {
        return None;
    }
    let at = (size - 1) / STEP;
    let (number, align) = if align <= USUAL { (at, USUAL) } else { (SIZES + at, WIDE) };
    Some((number, Layout::from_size_align((at + 1) * STEP, align).ok()?))
}

fn take(number: usize) -> Option<*mut u8> {
    // SAFETY: what `keep` made is never freed, and only this thread has its address; a kept block belongs to
    // nobody else, is aligned to 16 at least, and starts with what `give` wrote.
    #[allow(unsafe_code)]
    unsafe {
        let list = LISTS.get().as_mut()?.get_mut(number)?;
        let block = list.first;
        if block.is_null() {
            return None;
        }
        list.first = block.cast::<*mut u8>().read();
        list.count -= 1;
        Some(block)
    }
}

/// Keeps `block`; false when there are enough.
fn give(number: usize, block: *mut u8) -> bool {
    // SAFETY: as in `take`; the block was just freed, and is at least 16 bytes.
    #[allow(unsafe_code)]
    unsafe {
        let Some(list) = LISTS.get().as_mut().and_then(|lists| lists.get_mut(number)) else { return false };
        if list.count >= KEPT {
            return false;
        }
        block.cast::<*mut u8>().write(list.first);
        *list = List { first: block, count: list.count + 1 };
        true
    }
}

// SAFETY: all blocks are the system's. A kept one was requested with the rounded layout of its list, which
// follows from the layout that is requested or freed, and fits it.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Blocks {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match class(layout) {
            Some((number, rounded)) => take(number).unwrap_or_else(|| unsafe { System.alloc(rounded) }),
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match class(layout) {
            Some((number, _)) if give(number, block) => {}
            Some((_, rounded)) => unsafe { System.dealloc(block, rounded) },
            None => unsafe { System.dealloc(block, layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some((number, rounded)) = class(layout) else { return unsafe { System.alloc_zeroed(layout) } };
        match take(number) {
            Some(block) => unsafe {
                block.write_bytes(0, layout.size());
                block
            },
            None => unsafe { System.alloc_zeroed(rounded) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises that the new size makes a layout.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (class(layout), class(new)) {
            (None, None) => unsafe { System.realloc(block, layout, size) },
            (Some((old, _)), Some((new, _))) if old == new => block,
            _ => unsafe {
                let moved = self.alloc(new);
                if !moved.is_null() {
                    moved.copy_from_nonoverlapping(block, layout.size().min(size));
                    self.dealloc(block, layout);
                }
                moved
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(size: usize) -> Vec<u8> {
        (0..size).map(|at| (at % 251) as u8).collect()
    }

    #[test]
    fn a_thread_that_keeps_blocks_uses_them_again_and_not_too_many() {
        std::thread::spawn(|| {
            keep();
            let first = filled(1000);
            let at = first.as_ptr();
            drop(first);
            let second = filled(1001);
            assert_eq!(second.as_ptr(), at, "1008 bytes hold both");
            drop(second);
            let many: Vec<Vec<u8>> = (0..KEPT + 5).map(|_| filled(1000)).collect();
            assert!(many.iter().all(|one| *one == filled(1000)));
            drop(many);
            let (number, _) = class(Layout::new::<[u8; 1000]>()).unwrap();
            let mut count = 0;
            while let Some(block) = take(number) {
                // SAFETY: as `dealloc` would.
                #[allow(unsafe_code)]
                unsafe {
                    System.dealloc(block, class(Layout::new::<[u8; 1000]>()).unwrap().1);
                }
                count += 1;
            }
            assert_eq!(count, KEPT);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn blocks_grow_shrink_and_change_threads() {
        std::thread::spawn(|| {
            keep();
            let mut grown: Vec<u8> = Vec::new();
            for size in [1, 16, 17, 100, 4000, 4096, 4097, 70_000, 5000, 4096, 300, 15] {
                let old = grown.len();
                grown.resize(size, 0);
                if size > old {
                    grown[old..].copy_from_slice(&filled(size)[old..]);
                }
                grown.shrink_to_fit();
                assert_eq!(grown, filled(size), "{old} to {size}");
            }
            let elsewhere = std::thread::spawn(move || vec![grown, filled(77)]).join().unwrap();
            assert_eq!(elsewhere[1], filled(77));
            drop(elsewhere);
            let zeroed = Box::<[u8]>::new_zeroed_slice(77);
            // SAFETY: zeros are bytes.
            #[allow(unsafe_code)]
            let zeroed = unsafe { zeroed.assume_init() };
            assert!(zeroed.iter().all(|byte| *byte == 0));
        })
        .join()
        .unwrap();
    }

    #[test]
    fn alignment_is_kept() {
        #[repr(align(128))]
        struct Wide([u8; 200]);
        std::thread::spawn(|| {
            keep();
            for _ in 0..3 {
                let wide: Vec<Box<Wide>> = (0..5).map(|_| Box::new(Wide([1; 200]))).collect();
                assert!(wide.iter().all(|one| (&raw const **one).addr() % 128 == 0 && one.0 == [1; 200]));
                let usual: Vec<Box<[u8; 256]>> = (0..5).map(|_| Box::new([2; 256])).collect();
                assert!(usual.iter().all(|one| one[..] == [2; 256]));
            }
            assert!(class(Layout::from_size_align(64, 4096).unwrap()).is_none());
        })
        .join()
        .unwrap();
    }
}
