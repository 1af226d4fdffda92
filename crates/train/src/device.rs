//! What a rank's device can do, in numbers: measured of the machine at hand, or given of one that is not.

use std::fmt;
use std::str::FromStr;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::price::EXPECTED_MFU;
use crate::probe::Rate;

/// The kinds of device that a mesh rule may name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceKind {
    /// Cores of this machine, or of those that MPI started: what runs here.
    #[default]
    Cpu,
    /// A GPU of NVIDIA's. Plans only, for now.
    Cuda,
    /// Any other accelerator. Plans only.
    Other,
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(["cpu", "cuda", "other"][*self as usize])
    }
}

/// The device that each rank has, and how it reaches others.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Device {
    /// What it is.
    pub kind: DeviceKind,
    /// Bytes that it holds; `None` where nobody has said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<f64>,
    /// Floating-point operations a second at its peak.
    pub flops: f64,
    /// The share of the peak that a step's products reach while nobody waits.
    pub reaches: f64,
    /// Devices of a host, which are neighbours.
    pub per_host: usize,
    /// Bytes a second that it sends to another of its host.
    pub link: f64,
    /// Bytes a second that it sends to one of another host.
    pub network: f64,
    /// Whether what is sent for ahead travels while it computes.
    pub ahead: bool,
}

/// Words of a profile and what they are worth in the numbers of [`Device`].
const NUMBERS: [(&str, f64); 6] = [
    ("memory_gib", (1u64 << 30) as f64),
    ("tflops", 1e12),
    ("reaches", 1.0),
    ("per_host", 1.0),
    ("link_gb_s", 1e9),
    ("network_gb_s", 1e9),
];

impl FromStr for Device {
    type Err = String;

    /// `kind=cuda,memory_gib=80,tflops=989,per_host=8,link_gb_s=450,network_gb_s=50`, and `reaches=0.75` where it is another
    /// share.
    fn from_str(text: &str) -> Result<Device, String> {
        let (mut kind, mut values) = (None, [None; NUMBERS.len()]);
        for part in text.split(',') {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let (name, value) = (name.trim(), value.trim());
            if name == "kind" {
                kind = Some(match value {
                    "cpu" => DeviceKind::Cpu,
                    "cuda" => DeviceKind::Cuda,
                    "other" => DeviceKind::Other,
                    _ => return Err(format!("kind is `{value}`; it is cpu, cuda or other")),
                });
                continue;
            }
            let Some(at) = NUMBERS.iter().position(|(known, _)| *known == name) else {
                let known = NUMBERS.map(|(name, _)| name).join(", ");
                return Err(format!(
                    "`{part}` says nothing of a device; it is NAME=VALUE with one of kind, {known}"
                ));
            };
            let number = value.parse::<f64>().ok();
            let Some(number) = number.filter(|x| *x > 0.0 && *x <= 1e9) else {
                return Err(format!("{name} is `{value}`; it is a number above 0"));
            };
            values[at] = Some(number * NUMBERS[at].1);
        }
        let given = |at: usize| {
            let (name, _) = NUMBERS[at];
            values[at].ok_or_else(|| format!("{name} is missing; write {name}=NUMBER"))
        };
        let device = Device {
            kind: kind.ok_or("kind is missing; write kind=cuda, say")?,
            memory: Some(given(0)?),
            flops: given(1)?,
            reaches: values[2].unwrap_or(EXPECTED_MFU),
            per_host: given(3)? as usize,
            link: given(4)?,
            network: given(5)?,
            ahead: true,
        };
        if device.reaches > 1.0 {
            return Err(format!(
                "reaches is {}; it is a share of the peak, at most 1",
                device.reaches
            ));
        }
        if device.per_host == 0 || values[3] != Some(device.per_host as f64) {
            return Err("per_host is a whole number, at least 1".to_owned());
        }
        Ok(device)
    }
}

impl Device {
    /// A rank's part of this machine, whose products run at `rate` on `cores` of it: more ranks than cores have the less each.
    /// `copy` bytes a second are what one of its threads copies, which is how ranks of one machine send. Nothing travels ahead.
    pub fn here(rate: Rate, copy: f64, cores: usize, ranks: usize) -> Device {
        let link = copy * (cores as f64 / ranks as f64).min(1.0);
        Device {
            kind: DeviceKind::Cpu,
            memory: None,
            flops: rate.gflops * 1e9 / ranks as f64,
            reaches: rate.reaches,
            per_host: ranks,
            link,
            network: link,
            ahead: false,
        }
    }
}

/// Bytes a second that one thread of this machine copies from memory to memory: the best of some passes over 64 MiB.
pub fn copy_bytes_a_second() -> f64 {
    const FLOATS: usize = 16 << 20;
    const PASSES: usize = 5;
    let from: Vec<f32> = (0..FLOATS).map(|i| i as f32).collect();
    let mut to = vec![1.0f32; FLOATS];
    let mut best = f64::INFINITY;
    for _ in 0..PASSES {
        let begun = Instant::now();
        to.copy_from_slice(std::hint::black_box(&from));
        std::hint::black_box(&mut to);
        best = best.min(begun.elapsed().as_secs_f64());
    }
    size_of_val(&from[..]) as f64 / best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_read_and_what_is_wrong_with_it_said() {
        let text = "kind=cuda, memory_gib=80,tflops=989,per_host=8,link_gb_s=450,network_gb_s=50";
        let device: Device = text.parse().unwrap();
        assert_eq!(device.memory, Some(80.0 * f64::from(1 << 30)));
        assert_eq!((device.flops, device.per_host), (989e12, 8));
        assert_eq!((device.link, device.network), (450e9, 50e9));
        assert_eq!(device.reaches, EXPECTED_MFU);
        for (wrong, part) in [
            ("tflops=989", "kind is missing"),
            ("kind=cuda,tflops=989", "memory_gib is missing"),
            ("kind=cdua", "cpu, cuda or other"),
            ("kind=cuda,tflops=fast", "a number above 0"),
            ("kind=cuda,gigaflops=1", "says nothing of a device"),
            (&text.replace("per_host=8", "per_host=1.5"), "whole number"),
            (&format!("{text},reaches=2"), "at most 1"),
        ] {
            let said = wrong.parse::<Device>().unwrap_err();
            assert!(said.contains(part), "{wrong}: {said}");
        }
    }

    #[test]
    fn ranks_of_a_machine_share_its_rate() {
        let rate = Rate {
            gflops: 100.0,
            reaches: 0.4,
        };
        let two = Device::here(rate, 8e9, 2, 2);
        let four = Device::here(rate, 8e9, 2, 4);
        assert_eq!(two.reaches, 0.4);
        assert_eq!((two.flops, four.flops), (50e9, 25e9));
        assert_eq!((two.link, four.link), (8e9, 4e9));
    }
}
