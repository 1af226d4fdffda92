use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use russet_kernels::random;

use super::*;

fn line(axis: Axis, size: usize) -> MeshShape {
    let mut sizes = [1; 4];
    sizes[axis as usize] = size;
    MeshShape { sizes }
}

fn values(rank: usize, len: usize) -> Tensor {
    Tensor::from_fn(&[len], |i| random::normal(3, rank as u64, i as u64))
}

fn on<R: Send>(shape: MeshShape, work: impl Fn(&Mesh) -> R + Sync) -> Vec<R> {
    let results = run(shape, |mesh| Ok::<R, ()>(work(&mesh)));
    results.unwrap_or_else(|failure| panic!("{failure:?}"))
}

/// Ranks that hold one another up in ever another order.
fn dawdle(rank: usize, round: u64) {
    let micros = random::below(1, rank as u64, round, 200);
    std::thread::sleep(Duration::from_micros(micros));
}

#[test]
fn ragged_parts_come_together_round_after_round() {
    for size in [2, 3, 4] {
        on(line(Axis::Tensor, size), |mesh| {
            let group = mesh.along(Axis::Tensor);
            for round in 0..20 {
                dawdle(mesh.rank(), round);
                let rows = Rows { rows: 7, width: 3 };
                let whole = values(round as usize, 21);
                let part = &whole.data()[group.part(rows)];
                let message = Gather {
                    part: Tensor::new(&[part.len()], part.to_vec()),
                    rows,
                    out: vec![0.0; 21].into(),
                };
                let out = match round % 2 {
                    0 => group.all_gather(vec![message]),
                    _ => group.begin_all_gather(vec![message]).wait(),
                };
                assert_eq!(out[0][..], *whole.data());
            }
            // Own part of 7 rows by 3, each to all others.
            let own = group.part(Rows { rows: 7, width: 3 }).len() as u64;
            let sent = 20 * 4 * own * (size as u64 - 1);
            assert_eq!(mesh.moved().along, [0, 0, 0, sent]);
        });
    }
}

#[test]
fn sums_are_those_of_the_plain_version_to_the_bit() {
    /// The same calls without the backend's own reduce-scatter.
    struct Plain<'a>(&'a dyn Collective);
    impl Collective for Plain<'_> {
        fn rank(&self) -> usize {
            self.0.rank()
        }
        fn size(&self) -> usize {
            self.0.size()
        }
        fn begin_all_gather(&self, messages: Vec<Gather>) -> Box<dyn Pending> {
            self.0.begin_all_gather(messages)
        }
        fn all_to_all(&self, messages: &[(&Tensor, Rows)], out: &mut [Vec<f32>]) {
            self.0.all_to_all(messages, out);
        }
        fn shift(&self, data: &Tensor, out: &mut [f32]) {
            self.0.shift(data, out);
        }
        fn all_gather_bytes(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
            self.0.all_gather_bytes(bytes)
        }
    }
    const LENS: [usize; 3] = [10_001, 2, 64];
    for size in [2, 4] {
        let world = Arc::new(World::default());
        let sums = std::thread::scope(|scope| {
            let join = |mesh: Mesh| scope.spawn(move || one(&mesh, LENS));
            let threads: Vec<_> = meshes(line(Axis::Data, size), &world)
                .into_iter()
                .map(join)
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect::<Vec<_>>()
        });
        fn one(mesh: &Mesh, lens: [usize; 3]) -> Vec<Vec<f32>> {
            let group = mesh.along(Axis::Data);
            let messages = || {
                let message = |len| {
                    let rows = Rows::flat(len);
                    Reduce {
                        data: values(mesh.rank(), len),
                        rows,
                        out: vec![f32::NAN; group.part(rows).len()].into(),
                    }
                };
                lens.map(message).into_iter().collect::<Vec<_>>()
            };
            let fast = group.reduce_scatter(messages());
            let plain = Plain(group.backend()).reduce_scatter(messages());
            for (fast, plain) in fast.iter().zip(&plain) {
                assert_eq!(fast[..], plain[..]);
            }
            let all = lens.map(|len| values(mesh.rank(), len)).into();
            let all = group.all_reduce(all, |len| vec![0.0; len].into());
            all.iter().map(|sum| sum.data().to_vec()).collect()
        }
        for (message, len) in LENS.into_iter().enumerate() {
            let mut sum = values(0, len).data().to_vec();
            for rank in 1..size {
                add_part(&mut sum, values(rank, len).data(), rank);
            }
            assert!(
                sums.iter().all(|sums| sums[message] == sum),
                "in the order of the ranks"
            );
        }
    }
}

#[test]
fn the_rank_that_others_wait_for_waits_least() {
    let waited = on(line(Axis::Data, 3), |mesh| {
        for _ in 0..3 {
            if mesh.rank() == 1 {
                std::thread::sleep(Duration::from_millis(40));
            }
            mesh.all().all_gather_bytes(&[0]);
        }
        mesh.waited()
    });
    let third = Duration::from_millis(40);
    assert!(
        waited[0] >= 2 * third && waited[2] >= 2 * third,
        "{waited:?}"
    );
    assert!(waited[1] < waited[0] - third, "{waited:?}");
}

#[test]
fn groups_of_the_same_ranks_do_not_meet() {
    on(line(Axis::Data, 2), |mesh| {
        // One rank is a call ahead in one group while the other is still in the group before.
        for round in 0..50u8 {
            for group in [mesh.along(Axis::Data), mesh.replicas(), mesh.all()] {
                let said = [round, group.size() as u8];
                dawdle(mesh.rank(), u64::from(round));
                assert_eq!(group.all_gather_bytes(&said), [said, said]);
            }
        }
    });
}

#[test]
fn what_is_shifted_goes_round() {
    on(line(Axis::Sequence, 4), |mesh| {
        let mut held = values(mesh.rank(), 5).data().to_vec();
        for step in 1..=4 {
            let data = Tensor::new(&[5], held.clone());
            mesh.along(Axis::Sequence).shift(&data, &mut held);
            assert_eq!(held, values((mesh.rank() + 4 - step) % 4, 5).data());
        }
    });
}

#[test]
fn every_group_of_a_mesh_meets_on_its_own() {
    let shape = MeshShape {
        sizes: [2, 2, 1, 2],
    };
    on(shape, |mesh| {
        let own = mesh.rank().to_string();
        let place = shape.place(mesh.rank());
        for (group, wanted) in [
            (mesh.along(Axis::Data), 2),
            (mesh.along(Axis::Fsdp), 2),
            (mesh.along(Axis::Sequence), 1),
            (mesh.replicas(), 2),
            (mesh.model(), 4),
            (mesh.all(), 8),
        ] {
            dawdle(mesh.rank(), wanted as u64);
            let heard = group.all_gather_bytes(own.as_bytes());
            assert_eq!((heard.len(), group.size()), (wanted, wanted));
            assert_eq!(heard[group.rank()], own.as_bytes());
        }
        let heard = mesh.model().all_gather_f64(&[mesh.rank() as f64, -0.5]);
        for numbers in heard {
            assert_eq!(shape.place(numbers[0] as usize)[0], place[0]);
            assert_eq!(numbers[1], -0.5);
        }
    });
}

/// No rank hangs, whoever goes and however: everybody waits for somebody.
#[test]
fn a_rank_that_is_gone_ends_all_and_is_named() {
    for gone in 0..4 {
        for panics in [false, true] {
            let (begun, ended) = (Instant::now(), AtomicUsize::new(0));
            struct Count<'a>(&'a AtomicUsize);
            impl Drop for Count<'_> {
                fn drop(&mut self) {
                    self.0.fetch_add(1, Ordering::Relaxed);
                }
            }
            let result = run(line(Axis::Fsdp, 4), |mesh| {
                let _count = Count(&ended);
                for round in 0..10 {
                    if round == 5 && mesh.rank() == gone {
                        if panics {
                            // Without the hook's message.
                            resume_unwind(Box::new("the disk caught fire"));
                        }
                        return Err("no more paper");
                    }
                    dawdle(mesh.rank(), round);
                    mesh.all().all_gather_bytes(b"here");
                }
                Ok(())
            });
            match result {
                Err(Failure::Panicked { rank, message }) if panics => {
                    assert_eq!((rank, &*message), (gone, "the disk caught fire"));
                }
                Err(Failure::Error(error)) if !panics => assert_eq!(error, "no more paper"),
                other => panic!("{other:?}"),
            }
            assert_eq!(ended.into_inner(), 4);
            assert!(begun.elapsed() < Duration::from_secs(20));
        }
    }
}
