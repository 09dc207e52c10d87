//! The fixed facts of the native cluster: addresses, names and folders.

use std::path::PathBuf;

use anyhow::Result;
use sha2::{Digest, Sha256};

use crate::paths;

/// The only node.
pub(crate) const NODE: &str = "node1";
/// The node's address, on a device that leads nowhere.
pub(crate) const NODE_IP: &str = "10.245.0.1";
/// Where pods get their addresses from.
pub(crate) const PODS: &str = "10.244.0.0/20";
/// Where services get their addresses from.
pub(crate) const SERVICES: &str = "10.96.0.0/16";
/// The address of cluster DNS.
pub(crate) const DNS: &str = "10.96.0.10";
/// The API server's port.
pub(crate) const API_PORT: u16 = 6443;
/// Image of the container that holds a pod's namespaces.
pub(crate) const PAUSE_IMAGE: &str = "agentapi.dev/pause:dev";
/// Image of cluster DNS.
pub(crate) const COREDNS_IMAGE: &str = "agentapi.dev/coredns:dev";

/// Folders and names of one native cluster.
pub(crate) struct Layout {
    /// Everything that the cluster writes.
    pub(crate) root: PathBuf,
    /// Distinguishes what the kernel keeps (device, control groups) from another user's cluster.
    pub(crate) id: String,
}

impl Layout {
    /// The layout of this user's cluster.
    pub(crate) fn new() -> Result<Self> {
        let root = paths::ensure(paths::cache()?.join("cluster").join("native"))?;
        let id = hex::encode(&Sha256::digest(root.as_os_str().as_encoded_bytes())[..3]);
        Ok(Self { root, id })
    }

    /// A folder below the root, made if missing.
    pub(crate) fn dir(&self, name: &str) -> Result<PathBuf> {
        paths::ensure(self.root.join(name))
    }

    /// A path below the root as text.
    pub(crate) fn path(&self, name: &str) -> String {
        self.root.join(name).to_string_lossy().into_owned()
    }

    /// The network device that carries the node's address and the cluster's routes.
    pub(crate) fn device(&self) -> String {
        format!("agentapi-{}", self.id)
    }

    /// The name of the pod network and of the control group that holds every pod.
    pub(crate) fn name(&self) -> String {
        format!("agentapi-{}", self.id)
    }

    /// containerd's socket.
    pub(crate) fn containerd(&self) -> String {
        self.path("containerd/containerd.sock")
    }
}
