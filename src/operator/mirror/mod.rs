//! EtcdMirror: an agent that copies, told by a file, asked over HTTP.
//!
//! `observe` reads Kubernetes and asks the agent, `plan` decides, `apply` acts, `status` tells. The operator never
//! speaks to the etcds of a mirror itself: which side is active, how far the target is, what stands in the way, all
//! that is kept in etcd and told by the agent. So an EtcdMirror that is deleted and created again goes on.
//!
//! **Invariants:**
//! - At most one agent runs for an EtcdMirror (strategy Recreate); that two which overlap do no harm is etcd's work
//!   (the fence of the engine), not Kubernetes'.
//! - No agent runs for an EtcdMirror that would copy in a circle, or into another one's range, as far as can be seen
//!   from here.
//! - `<mirror>-active` names the site that etcd's records call active, never the one that is only wished for.
//! - Of a Secret of another namespace nothing is read before its EtcdCluster has consented.
//! - An object of a name that is needed, and is not this EtcdMirror's, is never changed.

pub mod apply;
pub mod desired;
pub mod manifests;
pub mod observe;
pub mod observed;
pub mod overlap;
pub mod plan;
pub mod probe;
pub mod reconcile;
pub mod status;
