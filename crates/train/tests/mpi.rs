//! Processes say to one another what threads say, to the bit.

use std::path::Path;
use std::process::Command;

use russet_kernels::random;
use russet_tensor::collective::{Gather, Reduce, Rows};
use russet_tensor::mesh::{AXES, Group, Mesh};
use russet_tensor::{MeshShape, Tensor, threads};
use russet_train::Launch;

const RANK: &str = "a_rank";

/// Two parts that are small, one that is empty on some ranks, and one that travels alone.
const SHAPES: [Rows; 4] = [
    Rows { rows: 7, width: 3 },
    Rows { rows: 2, width: 5 },
    Rows { rows: 1, width: 1 },
    Rows {
        rows: 1001,
        width: 83,
    },
];

fn values(rank: usize, salt: usize, len: usize) -> Tensor {
    Tensor::from_fn(&[len], |i| {
        random::normal(salt as u64, rank as u64, i as u64)
    })
}

fn gathers(group: &Group, salt: usize) -> Vec<Gather> {
    let message = |(number, rows): (usize, Rows)| Gather {
        part: values(group.rank(), salt + number, group.part(rows).len()),
        rows,
        out: vec![f32::NAN; rows.len()].into(),
    };
    SHAPES.into_iter().enumerate().map(message).collect()
}

/// Everything that a group can do, and what came of it.
fn everything(mesh: &Mesh) -> Vec<Vec<f32>> {
    let mut heard: Vec<Vec<f32>> = Vec::new();
    let groups = AXES.iter().map(|axis| mesh.along(*axis));
    for group in groups.chain([mesh.replicas(), mesh.model(), mesh.all()]) {
        let (rank, size) = (group.rank(), group.size());
        // Two begun at once and waited for in order, with other calls between.
        let first = group.begin_all_gather(gathers(group, 10));
        let second = group.begin_all_gather(gathers(group, 20));
        let shifted = values(mesh.rank(), 30, 5000);
        let mut before = vec![0.0; 5000];
        group.shift(&shifted, &mut before);
        heard.push(before);
        heard.extend(first.wait().iter().map(|whole| whole.to_vec()));
        let whole = group.all_gather(gathers(group, 40));
        heard.extend(whole.iter().map(|whole| whole.to_vec()));
        heard.extend(second.wait().iter().map(|whole| whole.to_vec()));
        let reduce = |(number, rows): (usize, Rows)| Reduce {
            data: values(mesh.rank(), 50 + number, rows.len()),
            rows,
            out: vec![f32::NAN; group.part(rows).len()].into(),
        };
        let sums = group.reduce_scatter(SHAPES.into_iter().enumerate().map(reduce).collect());
        heard.extend(sums.iter().map(|sum| sum.to_vec()));
        heard.push(group.all_to_all(&values(mesh.rank(), 60, SHAPES[0].len()), SHAPES[0]));
        // Words that are short, long and none.
        for len in [3 * rank, 1000 * rank + 1, 0] {
            let said = vec![mesh.rank() as u8; len];
            let all = group.all_gather_bytes(&said);
            let first = group.gather_bytes(&said);
            assert_eq!(first, (rank == 0).then(|| all.clone()));
            assert_eq!(all.len(), size);
            heard.extend(
                all.iter()
                    .map(|word| word.iter().map(|&x| x.into()).collect()),
            );
        }
    }
    heard
}

fn bits(heard: &[Vec<f32>]) -> Vec<Vec<u32>> {
    let bits = |numbers: &Vec<f32>| numbers.iter().map(|x| x.to_bits()).collect();
    heard.iter().map(bits).collect()
}

#[test]
#[ignore = "what the other test starts by mpirun"]
fn a_rank() {
    let launch = Launch::detect().unwrap();
    let Launch::Processes(world) = &launch else {
        panic!("started by mpirun");
    };
    for sizes in [[2, 1, 1, 2], [1, 4, 1, 1], [1, 2, 2, 1]] {
        let shape = MeshShape { sizes };
        let by_threads = threads::run(shape, |mesh| Ok::<_, ()>(everything(&mesh))).unwrap();
        let by_processes = everything(&world.mesh(shape));
        assert!(
            bits(&by_processes) == bits(&by_threads[world.rank()]),
            "{sizes:?}"
        );
    }
}

#[test]
#[allow(clippy::print_stderr, reason = "a skipped test says why")]
fn processes_hear_what_threads_hear() {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|folder| Path::new(&folder).join("mpirun").is_file()) {
        eprintln!("skipped: there is no mpirun");
        return;
    }
    let rank = Command::new("mpirun")
        .args(["--allow-run-as-root", "--oversubscribe", "-n", "4"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", RANK, "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&rank.stdout) + String::from_utf8_lossy(&rank.stderr);
    assert!(rank.status.success(), "{said}");
    assert_eq!(said.matches("1 passed").count(), 4, "{said}");
}
