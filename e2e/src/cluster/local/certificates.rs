//! The cluster's certificate authority, what it signs, and a kubeconfig for each who talks to the API server.

use std::{fs, io::Write, net::IpAddr, os::unix::fs::OpenOptionsExt, path::Path};

use base64::{Engine, engine::general_purpose::STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::json;

use super::{NodeChoice, config::Layout};
use crate::error::{IoContext, Result};

type Authority = CertifiedIssuer<'static, KeyPair>;

/// Writes everything into the nodes' folders: `pki/` and `*.kubeconfig` for the components, and into the first node's
/// `kubeconfig` for people.
pub(super) fn write(nodes: &[(&Path, &Layout)]) -> Result<()> {
    let authority = authority()?;
    for (folder, layout) in nodes {
        let pki = folder.join("pki");
        fs::create_dir_all(&pki).context(|| format!("creating {}", pki.display()))?;
        secret(&pki.join("ca.crt"), &authority.pem())?;
        let names = [layout.node_name.as_str()];
        server_files(
            &authority,
            &pki,
            "kubelet",
            &names,
            &[layout.block.node(layout.place).into()],
        )?;
        let node_user = format!("system:node:{}", layout.node_name);
        let users = [
            ("kubelet.kubeconfig", node_user.as_str(), Some("system:nodes")),
            ("kube-proxy.kubeconfig", "system:kube-proxy", None),
        ];
        kubeconfigs(&authority, folder, layout, &users)?;
        if layout.place == NodeChoice::First {
            control_plane(&authority, folder, &pki, layout)?;
        }
    }
    Ok(())
}

fn control_plane(authority: &Authority, folder: &Path, pki: &Path, layout: &Layout) -> Result<()> {
    let accounts = KeyPair::generate()?;
    secret(&pki.join("service-accounts.key"), &accounts.serialize_pem())?;
    secret(&pki.join("service-accounts.pub"), &accounts.public_key_pem())?;
    let names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ];
    let addresses = [
        layout.block.node(NodeChoice::First).into(),
        layout.block.api_service().into(),
        IpAddr::from([127, 0, 0, 1]),
    ];
    server_files(authority, pki, "apiserver", &names, &addresses)?;
    let (certificate, key) = client(authority, "hawkeye:apiserver", Some("system:masters"))?;
    secret(&pki.join("apiserver-kubelet-client.crt"), &certificate)?;
    secret(&pki.join("apiserver-kubelet-client.key"), &key)?;
    let users = [
        (
            "kube-controller-manager.kubeconfig",
            "system:kube-controller-manager",
            None,
        ),
        ("kube-scheduler.kubeconfig", "system:kube-scheduler", None),
        // People and tests; the last, because its presence says that the cluster can be talked to.
        ("kubeconfig", "hawkeye:admin", Some("system:masters")),
    ];
    kubeconfigs(authority, folder, layout, &users)
}

/// File, user and group of each.
fn kubeconfigs(
    authority: &Authority,
    folder: &Path,
    layout: &Layout,
    users: &[(&str, &str, Option<&str>)],
) -> Result<()> {
    for (file, user, group) in users {
        let (certificate, key) = client(authority, user, *group)?;
        let kubeconfig = kubeconfig(layout, &authority.pem(), &certificate, &key);
        secret(&folder.join(file), &kubeconfig)?;
    }
    Ok(())
}

fn server_files(authority: &Authority, pki: &Path, file: &str, names: &[&str], addresses: &[IpAddr]) -> Result<()> {
    let (certificate, key) = server(authority, names, addresses)?;
    secret(&pki.join(format!("{file}.crt")), &certificate)?;
    secret(&pki.join(format!("{file}.key")), &key)
}

fn kubeconfig(layout: &Layout, authority: &str, certificate: &str, key: &str) -> String {
    let (name, server) = (
        &layout.node_name,
        format!("https://{}:6443", layout.block.node(NodeChoice::First)),
    );
    let encode = |pem: &str| STANDARD.encode(pem);
    // JSON is YAML.
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": {"server": server, "certificate-authority-data": encode(authority)}}],
        "users": [{"name": name, "user": {"client-certificate-data": encode(certificate), "client-key-data": encode(key)}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    });
    format!("{config:#}\n")
}

fn named(user: &str, group: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, user);
    if let Some(group) = group {
        name.push(DnType::OrganizationName, group);
    }
    name
}

fn authority() -> Result<Authority> {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("hawkeye-e2e", None);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::CrlSign,
    ];
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}

/// Certificate and key, as PEM.
fn signed(
    authority: &Authority,
    mut params: CertificateParams,
    usage: ExtendedKeyUsagePurpose,
) -> Result<(String, String)> {
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    Ok((params.signed_by(&key, authority)?.pem(), key.serialize_pem()))
}

fn client(authority: &Authority, user: &str, group: Option<&str>) -> Result<(String, String)> {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(user, group);
    signed(authority, params, ExtendedKeyUsagePurpose::ClientAuth)
}

fn server(authority: &Authority, names: &[&str], addresses: &[IpAddr]) -> Result<(String, String)> {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names.clone())?;
    params.distinguished_name = named(&names[0], None);
    params
        .subject_alt_names
        .extend(addresses.iter().map(|&address| SanType::IpAddress(address)));
    signed(authority, params, ExtendedKeyUsagePurpose::ServerAuth)
}

/// Certificates are no secret, but one mode for all is simpler than two.
fn secret(path: &Path, text: &str) -> Result<()> {
    let file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .context(|| format!("writing {}", path.display()))
}
