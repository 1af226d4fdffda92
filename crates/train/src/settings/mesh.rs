//! `[parallel]`, and the rules that give a mesh to a number of ranks.

use russet_tensor::MeshShape;
use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::device::DeviceKind;

/// `[parallel]`: the mesh of ranks that share the work, along each of its axes. The result is the same but for the order of
/// sums: losses agree within 1e-5, and to the bit on the same mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ParallelSettings {
    /// Ranks, for which `rule` has a mesh; those that were started as processes where absent. Beside axes their product.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ranks: Option<usize>,
    /// Replicas, each with its share of the sequences.
    pub data: usize,
    /// Shares of the sequences whose ranks have pieces of the weights, gradients and moments.
    pub fsdp: usize,
    /// Parts of the tokens of each micro-batch, whose ranks pass keys and values round.
    pub sequence: usize,
    /// Parts of each matrix, and of the tokens between them.
    pub tensor: usize,
    /// Parts of the row of blocks. Reserved: only 1 for now.
    pub pipeline: usize,
    /// Meshes by kind of device and number of ranks: where no axis is set, the first that fits gives them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rule: Vec<MeshRule>,
}

/// `[[parallel.rule]]`: the mesh of so many ranks on a kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeshRule {
    /// What each rank has.
    pub device: DeviceKind,
    /// How many there are, the product of the axes.
    pub ranks: usize,
    /// See [`ParallelSettings::data`].
    #[serde(default = "one")]
    pub data: usize,
    /// See [`ParallelSettings::fsdp`].
    #[serde(default = "one")]
    pub fsdp: usize,
    /// See [`ParallelSettings::sequence`].
    #[serde(default = "one")]
    pub sequence: usize,
    /// See [`ParallelSettings::tensor`].
    #[serde(default = "one")]
    pub tensor: usize,
}

fn one() -> usize {
    1
}

impl Default for ParallelSettings {
    fn default() -> Self {
        ParallelSettings::of(MeshShape { sizes: [1; 4] })
    }
}

impl MeshRule {
    fn mesh(&self) -> MeshShape {
        MeshShape {
            sizes: [self.data, self.fsdp, self.sequence, self.tensor],
        }
    }
}

impl ParallelSettings {
    /// Nothing but a mesh.
    pub fn of(mesh: MeshShape) -> ParallelSettings {
        let [data, fsdp, sequence, tensor] = mesh.sizes;
        ParallelSettings {
            ranks: None,
            data,
            fsdp,
            sequence,
            tensor,
            pipeline: 1,
            rule: Vec::new(),
        }
    }

    /// The mesh.
    pub fn mesh(&self) -> MeshShape {
        MeshShape {
            sizes: [self.data, self.fsdp, self.sequence, self.tensor],
        }
    }

    /// With the axes that the rules give to devices of a kind, where none is set. `processes` are the ranks where `ranks` does not
    /// say it and several were started.
    ///
    /// # Errors
    /// When a rule contradicts itself, none fits, or `ranks` is not the product of the axes that are set.
    pub fn chosen(
        mut self,
        device: DeviceKind,
        processes: usize,
    ) -> crate::Result<ParallelSettings> {
        let product = |mesh: MeshShape| {
            let sizes = mesh.sizes.into_iter();
            sizes.fold(1usize, |ranks, size| ranks.saturating_mul(size))
        };
        for rule in &self.rule {
            let found = product(rule.mesh());
            if rule.ranks < 2 || found != rule.ranks {
                let problem = format!(
                    "for {} ranks makes a mesh of {found}; a rule is for 2 ranks or more, and its axes' product is their number",
                    rule.ranks
                );
                return Err(TrainError::setting("parallel.rule", problem));
            }
        }
        let set = product(self.mesh());
        if set != 1 {
            return match self.ranks {
                Some(ranks) if ranks != set => Err(TrainError::setting(
                    "parallel.ranks",
                    format!("is {ranks}, but the axes make {set}; set one or the other"),
                )),
                _ => Ok(self),
            };
        }
        let started = (processes > 1 && !self.rule.is_empty()).then_some(processes);
        let ranks = match self.ranks.or(started) {
            None | Some(1) => return Ok(self),
            Some(ranks) => ranks,
        };
        let fits = |rule: &&MeshRule| (rule.device, rule.ranks) == (device, ranks);
        let Some(rule) = self.rule.iter().find(fits) else {
            let problem = format!(
                "is {ranks}, and no `[[parallel.rule]]` gives a mesh to so many of device = \"{device}\"; add one, or set axes whose \
                 product it is, such as parallel.fsdp = {ranks}"
            );
            return Err(TrainError::setting("parallel.ranks", problem));
        };
        [self.data, self.fsdp, self.sequence, self.tensor] = rule.mesh().sizes;
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> ParallelSettings {
        try_parse(text).unwrap()
    }

    fn try_parse(text: &str) -> Result<ParallelSettings, russet_artifact::Error> {
        russet_artifact::Recipe::from_text("mesh", text, &[])?.parse()
    }

    const RULES: &str = "
        [[rule]]
        device = \"cpu\"
        ranks = 4
        fsdp = 2
        tensor = 2
        [[rule]]
        device = \"cuda\"
        ranks = 4
        fsdp = 4
        [[rule]]
        device = \"cpu\"
        ranks = 4
        data = 4
    ";

    #[test]
    fn the_first_rule_that_fits_gives_the_mesh() {
        let chosen = |text: &str, device, processes| {
            let settings = parse(&format!("{text}\n{RULES}"));
            let chosen = settings.chosen(device, processes);
            chosen.map(|settings| settings.mesh().sizes)
        };
        let said = |text, device, processes| {
            let error = chosen(text, device, processes).unwrap_err();
            error.to_string()
        };
        use DeviceKind::{Cpu, Cuda, Other};
        assert_eq!(chosen("ranks = 4", Cpu, 1).unwrap(), [1, 2, 1, 2]);
        assert_eq!(chosen("", Cpu, 4).unwrap(), [1, 2, 1, 2]);
        assert_eq!(chosen("ranks = 4", Cuda, 1).unwrap(), [1, 4, 1, 1]);
        // One rank needs no mesh, and axes that are set hold.
        assert_eq!(chosen("", Cpu, 1).unwrap(), [1; 4]);
        assert_eq!(chosen("ranks = 1", Cpu, 4).unwrap(), [1; 4]);
        assert_eq!(chosen("data = 2", Cpu, 4).unwrap(), [2, 1, 1, 1]);
        assert_eq!(chosen("data = 2\nranks = 2", Cpu, 1).unwrap(), [2, 1, 1, 1]);
        // What has been chosen once stays.
        let once = parse(&format!("ranks = 4\n{RULES}"))
            .chosen(Cuda, 1)
            .unwrap();
        assert_eq!(once.clone().chosen(Cpu, 1).unwrap(), once);
        let problem = said("ranks = 4", Other, 1);
        assert!(
            problem.starts_with("`parallel.ranks` is 4") && problem.contains("\"other\""),
            "{problem}"
        );
        assert!(said("", Cpu, 3).contains("parallel.fsdp = 3"));
        assert!(said("data = 2\nranks = 4", Cpu, 1).contains("the axes make 2"));
        // Processes alone ask for no rule where there is none.
        let none = ParallelSettings::default().chosen(Cpu, 4).unwrap();
        assert_eq!(none, ParallelSettings::default());
    }

    #[test]
    fn a_rule_that_contradicts_itself_is_refused_and_so_is_a_kind_that_is_none() {
        for text in [
            "[[rule]]\ndevice = \"cuda\"\nranks = 8\nfsdp = 4",
            "[[rule]]\ndevice = \"cpu\"\nranks = 1",
        ] {
            let problem = parse(text).chosen(DeviceKind::Cpu, 1).unwrap_err();
            let problem = problem.to_string();
            assert!(
                problem.starts_with("`parallel.rule` for"),
                "{text}: {problem}"
            );
        }
        for text in [
            "[[rule]]\ndevice = \"cdua\"\nranks = 8\nfsdp = 8",
            "[[rule]]\ndevice = \"cpu\"\nranks = 8\nfsdb = 8",
        ] {
            assert!(try_parse(text).is_err());
        }
    }
}
