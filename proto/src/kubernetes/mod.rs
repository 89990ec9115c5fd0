//! What the agent needs of Kubernetes' own objects: which nodes there are, where pods are led that ask for the Service
//! `kubernetes`, and the objects that lead them to the node-local address.
//!
//! Pods reach the API by the ClusterIP of that Service, whose endpoints the apiservers write: their own addresses. Only
//! with `--endpoint-reconciler-type=none` on all masters nobody writes them, and what stands there is ours to say.

mod account;
mod nodes;
mod objects;

pub use account::{endpoints_manifest, masters_manifest, rbac_manifest};
pub use nodes::{BadNodes, HostNode, HostNodes, ServingMember, not_served, parse_nodes, rancher_node};
pub use objects::{
    ENDPOINTS_PATH, Endpoints, SLICE_PATH, SLICES_PATH, SliceList, Target, endpoints_object, named,
    slice_object,
};
