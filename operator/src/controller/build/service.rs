//! The Service of a HawkeyeDeployment: one endpoint over all pools.

use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{Owner, PORT, labels, metadata};

/// Builds the Service. Its address is assigned by the cluster.
pub fn build(owner: &Owner<'_>) -> Service {
    Service {
        metadata: metadata(owner, owner.name.to_owned(), labels(owner.name)),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            selector: Some(labels(owner.name)),
            ports: Some(vec![ServicePort {
                name: Some("http".to_owned()),
                port: PORT,
                target_port: Some(IntOrString::String("http".to_owned())),
                protocol: Some("TCP".to_owned()),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// Where clients in the cluster send their requests.
pub fn endpoint(namespace: &str, name: &str) -> String {
    format!("http://{name}.{namespace}.svc:{PORT}")
}
