//! Where the time goes: seconds by kind of kernel, in this process, once [`start`] was called.
//!
//! A kernel opens a [`span`] on the thread that calls it. The time of a span inside another (a product within
//! cross-entropy) counts for the inner one alone, so the kinds add up to the time spent in kernels. Off, a span costs one
//! relaxed load.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// A kind of kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Dense products.
    Matmul,
    /// Palettized and 8-bit products, and the quantization of their inputs.
    Palette,
    /// Low-rank products of adapters by row.
    Adapter,
    /// Attention, forward and backward.
    Attention,
    /// RMS norms, and the norms and rotations of queries and keys.
    Norm,
    /// The gate of the feed-forward layer.
    SwiGlu,
    /// Softmax and loss, without its products.
    CrossEntropy,
    /// Rows of the embedding, read and added to.
    Embedding,
    /// Sums, scales and norms of vectors.
    Elementwise,
    /// Updates of weights.
    Optimizer,
}

impl Kernel {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Kernel; 10] = [
        Kernel::Matmul,
        Kernel::Palette,
        Kernel::Adapter,
        Kernel::Attention,
        Kernel::Norm,
        Kernel::SwiGlu,
        Kernel::CrossEntropy,
        Kernel::Embedding,
        Kernel::Elementwise,
        Kernel::Optimizer,
    ];

    /// A word for tables.
    pub fn name(self) -> &'static str {
        match self {
            Kernel::Matmul => "matmul",
            Kernel::Palette => "palette",
            Kernel::Adapter => "adapter",
            Kernel::Attention => "attention",
            Kernel::Norm => "norm",
            Kernel::SwiGlu => "swiglu",
            Kernel::CrossEntropy => "cross_entropy",
            Kernel::Embedding => "embedding",
            Kernel::Elementwise => "elementwise",
            Kernel::Optimizer => "optimizer",
        }
    }
}

static ON: AtomicBool = AtomicBool::new(false);
static NANOSECONDS: [AtomicU64; Kernel::ALL.len()] =
    [const { AtomicU64::new(0) }; Kernel::ALL.len()];

thread_local! {
    /// Nanoseconds of the spans that have ended inside the open one.
    static INNER: Cell<u64> = const { Cell::new(0) };
}

/// Begins to count, from zero.
pub fn start() {
    for nanoseconds in &NANOSECONDS {
        nanoseconds.store(0, Ordering::Relaxed);
    }
    ON.store(true, Ordering::Relaxed);
}

/// Ends counting and returns the seconds of each kind since [`start`].
pub fn stop() -> Vec<(Kernel, f64)> {
    ON.store(false, Ordering::Relaxed);
    Kernel::ALL
        .iter()
        .zip(&NANOSECONDS)
        .map(|(&kernel, nanoseconds)| (kernel, nanoseconds.load(Ordering::Relaxed) as f64 * 1e-9))
        .collect()
}

/// The time from here to the end of the scope counts for `kernel`.
#[must_use = "a span that is dropped at once measures nothing"]
pub fn span(kernel: Kernel) -> Option<Span> {
    ON.load(Ordering::Relaxed).then(|| Span {
        kernel,
        begun: Instant::now(),
        before: INNER.replace(0),
    })
}

/// An open span; it ends where it is dropped.
pub struct Span {
    kernel: Kernel,
    begun: Instant,
    /// What had ended inside the span around this one when it began.
    before: u64,
}

impl Drop for Span {
    fn drop(&mut self) {
        let elapsed = self.begun.elapsed().as_nanos() as u64;
        let inner = INNER.replace(self.before + elapsed);
        NANOSECONDS[self.kernel as usize]
            .fetch_add(elapsed.saturating_sub(inner), Ordering::Relaxed);
    }
}
