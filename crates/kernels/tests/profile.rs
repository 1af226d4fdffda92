//! The profile counts for the whole process, so this test has one of its own.

use std::time::{Duration, Instant};

use russet_kernels::profile::{Kernel, span, start, stop};

#[test]
fn an_inner_span_is_taken_off_the_outer_one() {
    assert!(span(Kernel::Matmul).is_none(), "off unless asked for");
    start();
    let begun = Instant::now();
    {
        let _outer = span(Kernel::CrossEntropy);
        std::thread::sleep(Duration::from_millis(20));
        for _ in 0..2 {
            let _inner = span(Kernel::Matmul);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let whole = begun.elapsed().as_secs_f64();
    let seconds = stop();
    for (number, (kernel, _)) in seconds.iter().enumerate() {
        assert_eq!(*kernel as usize, number, "{}", kernel.name());
    }
    let of = |kernel: Kernel| seconds[kernel as usize].1;
    let (outer, inner) = (of(Kernel::CrossEntropy), of(Kernel::Matmul));
    assert!(outer >= 0.02 && inner >= 0.04, "{outer} and {inner}");
    assert!(outer + inner <= whole, "{outer} + {inner} of {whole}");
    assert_eq!(of(Kernel::Norm), 0.0);
    assert!(span(Kernel::Matmul).is_none(), "off again");
}
