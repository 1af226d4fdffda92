//! Memory that a thread uses again and again for packed operands and tiles.
//!
//! A fresh allocation of some megabytes costs a page fault per 4 KiB, more than the packing itself;
//! so each thread keeps what it has used. Contents are left over from earlier uses.

use std::cell::RefCell;

/// A cache line, so that buffers begin at one.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([f32; 16]);

thread_local! {
    static FREE: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Runs `body` with `len` numbers, aligned to 64 bytes, of any value.
pub(crate) fn with_scratch<R>(len: usize, body: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut lines = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
    if lines.len() * 16 < len {
        // Not `resize`: nothing is worth copying.
        lines = vec![Line([0.0; 16]); len.div_ceil(16)];
    }
    // SAFETY: a `Line` is sixteen numbers without padding, and any bits are an f32.
    let numbers = unsafe {
        std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast::<f32>(), lines.len() * 16)
    };
    let result = body(&mut numbers[..len]);
    FREE.with_borrow_mut(|free| free.push(lines));
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_uses_do_not_share_memory() {
        for len in [1, 100, 17, 5000] {
            with_scratch(len, |outer| {
                outer.fill(1.0);
                with_scratch(2 * len, |inner| inner.fill(2.0));
                assert!(outer.len() == len && outer.iter().all(|&x| x == 1.0));
                assert_eq!(outer.as_ptr().addr() % 64, 0);
            });
        }
    }
}
