//! A build without the feature `mpi`: there are no other processes, and a launcher of several is told how to build.

use std::sync::Arc;

use russet_tensor::MeshShape;
use russet_tensor::mesh::Mesh;

use super::Started;
use crate::{Result, TrainError};

/// All processes that were started together; there are none in this build.
pub enum World {}

impl World {
    pub(super) fn begin(started: &Started) -> Result<World> {
        let many = match started.processes {
            Some(processes) => format!("{processes} processes"),
            None => "several processes".to_owned(),
        };
        Err(TrainError::Launch(format!(
            "{} started {many}, but this russet was built without MPI and they would each do all of the work; build it with \
             cargo build --release --features mpi (which needs an MPI library and libclang: docs/parallel.md, Across \
             machines), or start one process",
            started.by
        )))
    }

    /// Processes.
    pub fn size(&self) -> usize {
        match *self {}
    }

    /// This one.
    pub fn rank(&self) -> usize {
        match *self {}
    }

    /// Those on this machine.
    pub fn local_size(&self) -> usize {
        match *self {}
    }

    /// The cores that this one may use.
    pub fn cores(&self) -> usize {
        match *self {}
    }

    /// Ends all of them.
    pub fn abort(&self, _: i32) -> ! {
        match *self {}
    }

    /// One's view of a mesh of all.
    pub fn mesh(&self, _: MeshShape) -> Arc<Mesh> {
        match *self {}
    }

    pub(crate) fn machines(&self) -> Vec<String> {
        match *self {}
    }
}
