//! Who the ranks of a run are: threads of this process, or processes that MPI started together.
//!
//! ```text
//! russet pretrain RECIPE --set parallel.fsdp=4                 one process, four threads with a rank each
//! mpirun -n 4 russet pretrain RECIPE --set parallel.fsdp=4     four processes with a rank each, on one machine or many
//! ```
//! A launcher is known by the variables that it sets for what it starts. A build without the feature `mpi` knows them too,
//! so that four processes of it do not each train the whole and write over one another.

#[cfg(feature = "mpi")]
#[path = "launch/mpi.rs"]
mod backend;
#[cfg(not(feature = "mpi"))]
#[path = "launch/none.rs"]
mod backend;

use std::thread::available_parallelism;

use russet_tensor::MeshShape;

use crate::{Result, TrainError};

pub use backend::World;

/// Who the ranks of a run are.
pub enum Launch {
    /// Threads of this process.
    Threads,
    /// This process and others, one each.
    Processes(World),
}

impl Launch {
    /// What the launcher's variables say, which are looked at once, at the start of a process. MPI is begun where they speak
    /// of several processes, and ended when the result is dropped.
    ///
    /// # Errors
    /// When there are several processes and this build knows no MPI, or MPI does not know of them.
    pub fn detect() -> Result<Launch> {
        let Some(started) = Started::of(|name| std::env::var(name).ok()) else {
            return Ok(Launch::Threads);
        };
        let world = World::begin(&started)?;
        if let Some(processes) = started.processes
            && processes != world.size()
        {
            return Err(TrainError::Launch(format!(
                "{} started {processes} processes, but MPI knows {} of them. Start them so that MPI finds the others, as by \
                 mpirun -n {processes} or srun --mpi=pmix (docs/parallel.md, Across machines)",
                started.by,
                world.size()
            )));
        }
        Ok(match world.size() {
            1 => Launch::Threads,
            _ => Launch::Processes(world),
        })
    }

    /// Which of the processes this one is by the launcher's word, which is there before MPI is; 0 where there is none.
    pub fn process_as_told() -> usize {
        const RANKS: [&str; 4] = [
            "OMPI_COMM_WORLD_RANK",
            "PMI_RANK",
            "PMIX_RANK",
            "SLURM_PROCID",
        ];
        let number = |name: &&str| std::env::var(name).ok()?.trim().parse().ok();
        RANKS.iter().find_map(number).unwrap_or(0)
    }

    /// Processes that share the work.
    pub fn processes(&self) -> usize {
        match self {
            Launch::Threads => 1,
            Launch::Processes(world) => world.size(),
        }
    }

    /// Those of them that run on this machine.
    pub fn processes_here(&self) -> usize {
        match self {
            Launch::Threads => 1,
            Launch::Processes(world) => world.local_size(),
        }
    }

    /// This process among them.
    pub fn process(&self) -> usize {
        match self {
            Launch::Threads => 0,
            Launch::Processes(world) => world.rank(),
        }
    }

    /// Whether this process speaks to people.
    pub fn is_first(&self) -> bool {
        self.process() == 0
    }

    /// The threads that a run has on this machine where nothing else is asked for: its cores, or those that the launcher
    /// gave to the processes here.
    pub fn cores(&self) -> usize {
        match self {
            Launch::Threads => available_parallelism().map_or(1, usize::from),
            Launch::Processes(world) => world.cores() * world.local_size(),
        }
    }

    /// Ends the other processes, where there are any, and this one with them: they may wait for what will not come.
    pub fn abort(&self, code: u8) {
        if let Launch::Processes(world) = self {
            world.abort(code.into());
        }
    }

    /// Ranks of a mesh that run on this machine.
    ///
    /// # Errors
    /// When there are not as many processes as ranks.
    pub(crate) fn ranks_here(&self, mesh: MeshShape) -> Result<usize> {
        let ranks = mesh.ranks();
        match self {
            Launch::Threads => Ok(ranks),
            Launch::Processes(world) if world.size() == ranks => Ok(world.local_size()),
            Launch::Processes(world) => Err(TrainError::setting(
                "parallel",
                format!(
                    "makes a mesh of {ranks} ranks, but MPI started {} processes, and each has one rank; start {ranks}, as by \
                     mpirun -n {ranks}, or set axes whose product is {}",
                    world.size(),
                    world.size()
                ),
            )),
        }
    }
}

/// What a launcher says of the processes that it started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Started {
    /// The launcher, as a person calls it.
    pub by: &'static str,
    /// How many there are; `None` where it does not say.
    pub processes: Option<usize>,
}

impl Started {
    /// `None` where this process was started alone.
    ///
    /// Slurm's are those of a step, which srun sets and a batch script's own shell has not.
    fn of(variable: impl Fn(&str) -> Option<String>) -> Option<Started> {
        const SAY_HOW_MANY: [(&str, &str); 3] = [
            ("OMPI_COMM_WORLD_SIZE", "mpirun"),
            ("PMI_SIZE", "the MPI launcher"),
            ("SLURM_STEP_NUM_TASKS", "srun"),
        ];
        let number = |name: &str| variable(name)?.trim().parse::<usize>().ok();
        for (name, by) in SAY_HOW_MANY {
            if let Some(processes) = number(name) {
                let processes = Some(processes);
                return (processes > Some(1)).then_some(Started { by, processes });
            }
        }
        number("PMIX_RANK").map(|_| Started {
            by: "a PMIx launcher",
            processes: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(variables: &[(&str, &str)], by: Option<&str>, processes: Option<usize>) {
        let started = Started::of(|name| {
            let found = variables.iter().find(|(other, _)| *other == name);
            found.map(|(_, value)| (*value).to_owned())
        });
        assert_eq!(
            started.as_ref().map(|started| started.by),
            by,
            "{variables:?}"
        );
        assert_eq!(
            started.and_then(|started| started.processes),
            processes,
            "{variables:?}"
        );
    }

    #[test]
    fn launchers_are_known_by_their_variables() {
        check(&[], None, None);
        let ompi = [("PMIX_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "4")];
        check(&ompi, Some("mpirun"), Some(4));
        check(&[("PMI_SIZE", "8")], Some("the MPI launcher"), Some(8));
        check(&[("PMIX_RANK", "0")], Some("a PMIx launcher"), None);
        // srun of one task, and the shell of a batch job of four, are processes alone.
        check(&[("OMPI_COMM_WORLD_SIZE", "1")], None, None);
        check(
            &[("PMIX_RANK", "0"), ("SLURM_STEP_NUM_TASKS", "1")],
            None,
            None,
        );
        check(&[("SLURM_NTASKS", "4"), ("SLURM_PROCID", "0")], None, None);
        check(&[("SLURM_STEP_NUM_TASKS", "4")], Some("srun"), Some(4));
    }
}
