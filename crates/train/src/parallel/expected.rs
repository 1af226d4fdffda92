//! How long a step takes on a mesh, by formula (docs/parallel.md, Time).
//!
//! ```text
//! products = operations of a rank / (peak · reaches)
//! an axis  = its bytes / (link where its ranks are within a host, else network)
//! step     = max(products, blocks sent for ahead) + the rest along fsdp + data + sequence + tensor
//! ```
//! Left out: what a message costs however short it is, ranks that are late, and loading, logging, saving.

use std::fmt;

use russet_model::Config;
use russet_tensor::MeshShape;
use russet_tensor::mesh::{AXES, Axis};
use serde::Serialize;

use super::{MeshPlan, RankPlan};
use crate::check::{check_mesh, check_parallel, packing};
use crate::device::Device;
use crate::price::{Estimate, TeacherPrice, training_flops};
use crate::settings::{ParallelSettings, Recompute, Settings};

/// Meshes that are shown beside the one asked for.
const SHOWN: usize = 5;

/// A step's time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Expected {
    /// Along data, fsdp, sequence and tensor.
    pub mesh: [usize; 4],
    /// Of a step.
    pub seconds: f64,
    /// Those of products, those computed again too.
    pub products: f64,
    /// Those of what is sent, along each axis.
    pub along: [f64; 4],
    /// Those of it that pass while products do.
    pub hidden: f64,
    /// Operations that the model needs, over what the devices' peaks would do in the time.
    pub mfu: f64,
    /// [`Expected::mfu`] if all that is sent along data and fsdp went on beside products.
    pub mfu_at_best: f64,
    /// Bytes of a rank.
    pub peak: usize,
}

/// What is to be expected of a number of ranks: of the mesh asked for, and of others.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outlook {
    /// On what.
    pub device: Device,
    /// The mesh of the settings.
    pub own: Expected,
    /// Whether a rank of it has room.
    pub fits: bool,
    /// The fastest of all meshes of as many ranks that fit, fastest first; empty for one rank.
    pub fastest: Vec<Expected>,
}

impl Expected {
    /// Of resolved settings, whose mesh divides the model and the batch, and of a `teacher` that runs beside the student on every rank.
    pub fn new(
        config: &Config,
        settings: &Settings,
        device: &Device,
        teacher: Option<&Config>,
    ) -> Expected {
        let mesh = settings.parallel.mesh();
        let (rank, peak) = match MeshPlan::new(config, settings) {
            Some(plan) => (plan.rank, plan.rank.peak),
            None => {
                let memory = crate::price::memory(config, settings);
                (RankPlan::new(config, settings, 0), memory.total())
            }
        };
        let packing = packing(settings);
        let tokens = (packing.batch_sequences * packing.sequence_length) as u64;
        let needed = training_flops(config, settings, tokens) / mesh.ranks() as f64;
        let again = match settings.compute.recompute {
            Recompute::None => 0.0,
            Recompute::Block => {
                let table = 2.0 * (config.vocab * config.width) as f64;
                let a_token = config.forward_flops(packing.sequence_length / 2) - table;
                tokens as f64 * a_token / mesh.ranks() as f64
            }
        };
        let price = |teacher| TeacherPrice::new(teacher, settings, tokens);
        let teacher = teacher.map(price).unwrap_or_default();
        let ranks = mesh.ranks();
        let taught = teacher.flops / ranks as f64;
        let peak = peak.saturating_add(teacher.bytes / ranks);
        let products = (needed + again + taught) / (device.flops * device.reaches);
        let seconds_of = |axis: Axis, bytes: u64| bytes as f64 / bandwidth(mesh, axis, device);
        let along = AXES.map(|axis| seconds_of(axis, rank.moved.along[axis as usize]));
        let hidden = match device.ahead {
            true => seconds_of(Axis::Fsdp, rank.ahead).min(products),
            false => 0.0,
        };
        let seconds = products + along.iter().sum::<f64>() - hidden;
        let beside = along[Axis::Data as usize] + along[Axis::Fsdp as usize];
        let between = along[Axis::Sequence as usize] + along[Axis::Tensor as usize];
        Expected {
            mesh: mesh.sizes,
            seconds,
            products,
            along,
            hidden,
            mfu: needed / device.flops / seconds,
            mfu_at_best: needed / device.flops / (products.max(beside) + between),
            peak,
        }
    }
}

/// Bytes a second along an axis: those of the network where a group of it is in several hosts.
fn bandwidth(mesh: MeshShape, axis: Axis, device: &Device) -> f64 {
    // Groups of sums over data and sequence reach as far as those over data.
    let span: usize = AXES[axis as usize..]
        .iter()
        .map(|axis| mesh.size(*axis))
        .product();
    match span <= device.per_host && device.per_host.is_multiple_of(span) {
        true => device.link,
        false => device.network,
    }
}

impl Outlook {
    /// How long so many steps take.
    pub fn estimate(&self, steps: u64) -> Estimate {
        let seconds = steps as f64 * self.own.seconds;
        Estimate {
            seconds_at_peak: seconds * self.own.mfu,
            seconds,
        }
    }

    /// Of resolved settings, whose mesh divides the model and the batch, and of a `teacher` that runs beside the student.
    pub fn new(
        config: &Config,
        settings: &Settings,
        device: Device,
        teacher: Option<&Config>,
    ) -> Outlook {
        let fits = |peak: usize| device.memory.is_none_or(|memory| peak as f64 <= memory);
        let own = Expected::new(config, settings, &device, teacher);
        let ranks = settings.parallel.mesh().ranks();
        let mut fastest: Vec<Expected> = match ranks {
            1 => Vec::new(),
            _ => meshes(ranks)
                .into_iter()
                .filter_map(|mesh| {
                    let settings = Settings {
                        parallel: ParallelSettings::of(mesh),
                        ..settings.clone()
                    };
                    check_parallel(&settings).ok()?;
                    check_mesh(&settings, config).ok()?;
                    Some(Expected::new(config, &settings, &device, teacher))
                })
                .filter(|expected| fits(expected.peak))
                .collect(),
        };
        fastest.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        fastest.truncate(SHOWN);
        Outlook {
            device,
            own,
            fits: fits(own.peak),
            fastest,
        }
    }
}

/// Every mesh of so many ranks.
fn meshes(ranks: usize) -> Vec<MeshShape> {
    let divisors = |n: usize| (1..=n).filter(move |d| n.is_multiple_of(*d));
    let mut all = Vec::new();
    for data in divisors(ranks) {
        for fsdp in divisors(ranks / data) {
            let rest = ranks / data / fsdp;
            all.extend(divisors(rest).map(|sequence| MeshShape {
                sizes: [data, fsdp, sequence, rest / sequence],
            }));
        }
    }
    all
}

/// "850 ms", "12.3 s".
fn time(seconds: f64) -> String {
    match seconds {
        0.0 => "0 s".to_owned(),
        ..1.0 => format!("{:.3} ms", Significant(1000.0 * seconds)),
        _ => format!("{:.3} s", Significant(seconds)),
    }
}

/// A number of so many significant digits as its precision.
struct Significant(f64);

impl fmt::Display for Significant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let before = self.0.abs().max(1e-300).log10().floor() as i64 + 1;
        let digits = f.precision().unwrap_or(3) as i64;
        write!(f, "{:.*}", (digits - before).clamp(0, 6) as usize, self.0)
    }
}

impl fmt::Display for Outlook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let own = &self.own;
        write!(
            f,
            "step     about {} on {} {}: products {}",
            time(own.seconds),
            own.mesh.iter().product::<usize>(),
            self.device.kind,
            time(own.products)
        )?;
        for axis in AXES {
            let seconds = own.along[axis as usize];
            if seconds > 0.0 {
                write!(f, ", along {} {}", axis.name(), time(seconds))?;
            }
        }
        if own.hidden > 0.0 {
            write!(f, ", of which {} pass beside products", time(own.hidden))?;
        }
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        write!(f, "; MFU {}", percent(own.mfu))?;
        if self.device.ahead {
            write!(
                f,
                ", {} if all along data and fsdp did",
                percent(own.mfu_at_best)
            )?;
        }
        let gib = |bytes: f64| bytes / (1u64 << 30) as f64;
        if let (false, Some(memory)) = (self.fits, self.device.memory) {
            write!(
                f,
                "\nit does not fit: a rank needs {:.1} GiB and has {:.1}; use more along fsdp or tensor, a smaller \
                 `train.micro_batch_sequences`, or compute.recompute = \"block\"",
                gib(own.peak as f64),
                gib(memory)
            )?;
        }
        if own.mesh.iter().product::<usize>() > 1 && self.fastest.is_empty() {
            write!(f, "\nno mesh of as many ranks fits")?;
        }
        if !self.fastest.is_empty() {
            write!(
                f,
                "\nfastest of the meshes that fit, data x fsdp x sequence x tensor:"
            )?;
        }
        for expected in &self.fastest {
            let mesh = expected.mesh.map(|size| size.to_string()).join(" x ");
            write!(
                f,
                "\n  {mesh:<18} {:>9}  MFU {:>6}  {:>6.1} GiB",
                time(expected.seconds),
                percent(expected.mfu),
                gib(expected.peak as f64)
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common;

    /// The small recipe on a mesh, and what is expected of it there.
    fn expected(changes: &[&str], device: &Device) -> (Expected, Option<MeshPlan>) {
        let settings: Settings = common::settings(changes);
        let settings = settings.resolved(crate::Start::Random).unwrap();
        let config = settings.decoder(512, None).unwrap();
        let plan = MeshPlan::new(&config, &settings);
        (Expected::new(&config, &settings, device, None), plan)
    }

    const DEVICE: Device = Device {
        kind: crate::DeviceKind::Other,
        memory: None,
        flops: 1e12,
        reaches: 0.5,
        per_host: 2,
        link: 1e9,
        network: 1e8,
        ahead: true,
    };

    #[test]
    fn a_step_is_its_products_and_what_is_not_hidden_behind_them() {
        let (one, _) = expected(&[], &DEVICE);
        assert_eq!((one.seconds, one.hidden), (one.products, 0.0));
        assert!((one.mfu - 0.5).abs() < 1e-12, "{one:?}");
        // Tensor within a host, fsdp over the network.
        let mesh = ["parallel.fsdp=2", "parallel.tensor=2"];
        let (four, plan) = expected(&mesh, &DEVICE);
        let rank = plan.unwrap().rank;
        let [data, fsdp, sequence, tensor] = rank.moved.along.map(|bytes| bytes as f64);
        assert_eq!((data, sequence), (0.0, 0.0));
        assert_eq!(four.along, [0.0, fsdp / 1e8, 0.0, tensor / 1e9]);
        assert!((four.products - one.products / 4.0).abs() < 1e-12);
        assert!(rank.ahead > 0 && (rank.ahead as f64) < fsdp);
        assert_eq!(four.hidden, (rank.ahead as f64 / 1e8).min(four.products));
        let sum = four.products + fsdp / 1e8 + tensor / 1e9 - four.hidden;
        assert!((four.seconds - sum).abs() < 1e-12);
        assert!(four.mfu <= four.mfu_at_best && four.mfu_at_best < 0.5);
        // Where nothing travels ahead all is waited for; and blocks that are computed again cost products.
        let waits = Device {
            ahead: false,
            ..DEVICE
        };
        let (all, _) = expected(&mesh, &waits);
        assert_eq!((all.hidden, all.along), (0.0, four.along));
        let (again, _) = expected(&["compute.recompute=block"], &DEVICE);
        let ratio = again.products / one.products;
        assert!((1.1..4.0 / 3.0).contains(&ratio), "{ratio}");
    }

    #[test]
    fn meshes_that_fit_are_listed_fastest_first() {
        assert_eq!(meshes(8).len(), 20);
        let settings: Settings = common::settings(&["parallel.data=2", "parallel.fsdp=2"]);
        let settings = settings.resolved(crate::Start::Random).unwrap();
        let config = settings.decoder(512, None).unwrap();
        let outlook = |memory| {
            let device = Device { memory, ..DEVICE };
            Outlook::new(&config, &settings, device, None)
        };
        let all = outlook(None);
        assert!(all.fits && all.fastest.len() > 2);
        assert!(all.fastest.is_sorted_by_key(|expected| expected.seconds));
        let text = all.to_string();
        assert!(
            text.starts_with("step     about ")
                && text.contains("on 4 other: products ")
                && text.contains("\n  2 x 2 x 1 x 1"),
            "{text}"
        );
        let least = all.fastest.iter().map(|e| e.peak).min().unwrap();
        let some = outlook(Some(least as f64));
        assert!(some.fastest.len() < all.fastest.len() || all.fastest.len() == SHOWN);
        assert!(some.fastest.iter().all(|expected| expected.peak <= least));
        let none = outlook(Some(1.0));
        assert!(!none.fits && none.fastest.is_empty());
        assert!(
            none.to_string().contains("it does not fit") && none.to_string().contains("no mesh")
        );
    }
}
