//! The CRDs as they are installed: kube's derived schema plus what the derive cannot say.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use super::EtcdCluster;

/// Every CRD of this project.
pub fn all_crds() -> Vec<CustomResourceDefinition> {
    vec![EtcdCluster::crd()]
}
