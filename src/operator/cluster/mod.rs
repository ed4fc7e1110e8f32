//! EtcdCluster: the only writer of its members.
//!
//! `observe` reads Kubernetes and etcd, `plan` decides, `apply` acts, `status` tells.
//!
//! # What can be lost, and what guards it
//!
//! A cluster passes through three records, each written before the act that needs it:
//!
//! 1. `status.bootstrap` (serials, token, incarnation) before the first child. Until the third record nothing
//!    but this says who founds the cluster; an edit of `replicas` in between changes nothing.
//! 2. Cluster ID and member ID on each volume, as soon as its member has reported them. From then on a Pod on
//!    that volume must find its data (`QUORATE_EXPECT_STAMP`), and the cluster is never founded again (`new`).
//! 3. Cluster ID and all members in `status`, once *every* volume of the first start carries the same ID. Only
//!    then do Pods get `quorate.dev/role=voter`, so clients are served only by a cluster that is on record.
//!
//! **Invariants** (numbers of `docs/architecture.md`):
//! - I-3: no volume that carries a cluster ID is deleted here.
//! - I-4: no Pod starts on a recorded volume without demanding its stamp, its IDs and its high-water mark.
//! - I-5: `initial-cluster-state=new` is given only while neither the status nor any volume of the cluster
//!   carries a cluster ID; a first start is begun anew only before the third record, with a new token and
//!   volumes of new names.
//! - A volume of another UID is never mounted, changed or deleted.

pub mod apply;
pub mod credentials;
pub mod desired;
pub mod inspect;
pub mod issue;
pub mod manifests;
pub mod observe;
pub mod observed;
pub mod plan;
pub mod reconcile;
pub mod rotation;
pub mod status;
