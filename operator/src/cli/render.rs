//! The reports for people.

use std::collections::BTreeMap;

use hawkeye_crds::v1alpha1::{ConditionStatus, ConditionType};

use super::{
    report::{ClassReport, ClassesReport, DeploymentReport, NodeReport, PlanReport},
    table::{Table, hanging, paragraph, plural},
};
use crate::hardware::evidence::What;

/// Alike nodes are listed one by one up to this many nodes in all.
const FEW: usize = 20;

/// A plan: what each HawkeyeDeployment gets first, then the nodes and classes that it comes from.
pub fn plan(report: &PlanReport, width: usize, all_nodes: bool) -> String {
    let mut out = String::new();
    for deployment in &report.deployments {
        one_deployment(&mut out, deployment, width);
        out.push('\n');
    }
    class_table(&mut out, &report.classes, width);
    out.push('\n');
    node_table(&mut out, &report.nodes, width, all_nodes);
    notes(&mut out, &report.notes, width);
    out
}

/// The classes.
pub fn classes(report: &ClassesReport, width: usize) -> String {
    let mut out = String::new();
    class_table(&mut out, &report.classes, width);
    if !report.unclassified.is_empty() {
        out.push('\n');
        node_table(&mut out, &report.unclassified, width, false);
    }
    notes(&mut out, &report.notes, width);
    out
}

fn one_deployment(out: &mut String, deployment: &DeploymentReport, width: usize) {
    let asked = usize::try_from(deployment.replicas).unwrap_or(0);
    let refused = deployment
        .conditions
        .iter()
        .any(|one| one.type_ == ConditionType::Accepted.as_str() && one.status != ConditionStatus::True);
    let outcome = if refused {
        "not accepted".to_owned()
    } else if deployment.unplaced > 0 {
        format!(
            "{} of {} without a place",
            deployment.unplaced,
            plural(asked, "replica")
        )
    } else {
        format!("{}, all placed", plural(asked, "replica"))
    };
    hanging(
        out,
        &format!("{}/{}: {outcome}", deployment.namespace, deployment.name),
        width,
        0,
        2,
    );
    for condition in &deployment.conditions {
        let good = ConditionType::ALL
            .iter()
            .find(|type_| type_.as_str() == condition.type_)
            .is_some_and(|type_| type_.good() == condition.status);
        if !good {
            let text = format!(
                "! {}={:?} {}: {}",
                condition.type_, condition.status, condition.reason, condition.message
            );
            hanging(out, &text, width, 2, 2);
        }
    }
    let mut table =
        Table::new(&["CLASS", "PODS", "DEVICE", "DTYPE", "BATCH", "MEMORY", "CPU", "WHY"]).optional(&["CPU"]);
    for pool in &deployment.pools {
        let used = pool.replicas > 0;
        let when = |text: String| if used { text } else { "-".to_owned() };
        table.row([
            pool.class.clone(),
            pool.replicas.to_string(),
            when(pool.device.as_str().to_owned()),
            when(pool.dtype.as_str().to_owned()),
            when(pool.batch_size.to_string()),
            when(pool.memory.to_string()),
            when(pool.cpu.to_string()),
            format!("{}: {}", pool.reason, pool.message),
        ]);
    }
    if !table.is_empty() {
        table.write(out, width, 2);
    }
    let mut images: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for pool in deployment.pools.iter().filter(|pool| pool.replicas > 0) {
        images.entry(&pool.image).or_default().push(&pool.class);
    }
    for (image, classes) in images {
        hanging(out, &format!("image for {}: {image}", classes.join(", ")), width, 2, 2);
    }
    if let Some(model) = &deployment.model {
        let source = match (&model.image, &model.persistent_volume_claim, &model.http) {
            (Some(image), _, _) => format!("image {}", image.reference),
            (None, Some(claim), _) => format!("PersistentVolumeClaim {}", claim.claim_name),
            (None, None, Some(http)) => http.url.clone(),
            (None, None, None) => return,
        };
        hanging(out, &format!("model: {source}"), width, 2, 2);
    }
}

fn class_table(out: &mut String, classes: &[ClassReport], width: usize) {
    if classes.is_empty() {
        paragraph(out, "There is no HardwareClass.", width, 0);
        return;
    }
    // A plan says the rest with each pool.
    let planned = classes.iter().any(|class| class.planned.is_some());
    let mut table = if planned {
        Table::new(&[
            "CLASS", "PRIORITY", "NODES", "READY", "FREE", "PLANNED", "DEVICE", "RESOURCE",
        ])
    } else {
        Table::new(&[
            "CLASS", "PRIORITY", "NODES", "READY", "FREE", "DTYPE", "BATCH", "MEMORY", "CPU", "DEVICE", "RESOURCE",
        ])
    }
    .optional(&["PRIORITY", "CPU", "DEVICE"]);
    for class in classes {
        let free = match (class.free, class.held_by_others) {
            _ if class.autoscaled => "on demand".to_owned(),
            (Some(free), Some(held)) if held > 0 => format!("{free} ({held} held)"),
            (Some(free), _) => free.to_string(),
            (None, _) => "-".to_owned(),
        };
        let batch = class.batch_size;
        let mut cells = vec![
            class.name.clone(),
            class.priority.to_string(),
            class.nodes.to_string(),
            class.schedulable.to_string(),
            free,
        ];
        match class.planned {
            Some(planned) => cells.push(planned.to_string()),
            None => cells.extend([
                class.dtype.as_str().to_owned(),
                if batch.speed == batch.balanced && batch.balanced == batch.quality {
                    batch.speed.to_string()
                } else {
                    format!("{}/{}/{}", batch.speed, batch.balanced, batch.quality)
                },
                class.memory.to_string(),
                class.cpu.to_string(),
            ]),
        }
        cells.push(class.device.as_str().to_owned());
        cells.push(class.resource.clone().unwrap_or_else(|| "-".to_owned()));
        table.row(cells);
    }
    table.write(out, width, 0);
}

fn node_table(out: &mut String, nodes: &[NodeReport], width: usize, all_nodes: bool) {
    if nodes.is_empty() {
        paragraph(out, "There is no node.", width, 0);
        return;
    }
    // Nodes that differ by their name alone share a line, once there are many.
    let mut lines: Vec<(&str, Option<&str>, String, usize)> = Vec::new();
    let mut places: BTreeMap<(Option<&str>, String), usize> = BTreeMap::new();
    for node in nodes {
        let (name, class) = (node.evidence.node.as_str(), node.evidence.class.as_deref().ok());
        let text = why(node);
        if !all_nodes && nodes.len() > FEW {
            let at = *places.entry((class, text.clone())).or_insert(lines.len());
            if let Some((_, _, _, count)) = lines.get_mut(at) {
                *count += 1;
                continue;
            }
        }
        lines.push((name, class, text, 1));
    }
    let mut table = Table::new(&["NODE", "CLASS", "WHY"]);
    for (name, class, text, count) in lines {
        let name = match count {
            1 => name.to_owned(),
            _ => format!("{name} (+{} alike)", count - 1),
        };
        table.row([name, class.unwrap_or("none").to_owned(), text]);
    }
    table.write(out, width, 0);
}

/// Why a node has its class, or why no class has it; then what its publishers contradict themselves about, and why it takes
/// no pods.
fn why(node: &NodeReport) -> String {
    let mut parts: Vec<String> = Vec::new();
    match &node.evidence.class {
        Ok(_) => {
            // Every node has these two, and the class says the architecture.
            let common = [What::OperatingSystem, What::Architecture];
            let facts = node.evidence.why.iter().filter(|fact| !common.contains(&fact.what));
            parts.extend(facts.map(ToString::to_string));
        }
        Err(unclassified) => {
            parts.push(format!("{}: {}", unclassified.reason, unclassified.message));
            let mut classes: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
            for rejection in &node.evidence.rejected {
                classes.entry(&rejection.message).or_default().push(&rejection.class);
            }
            parts.extend(
                classes
                    .iter()
                    .map(|(why, classes)| format!("not {}: {why}", classes.join(", "))),
            );
        }
    }
    parts.extend(
        node.evidence
            .conflicts
            .iter()
            .map(|conflict| format!("conflict: {conflict}")),
    );
    if !node.blocked_by.is_empty() {
        parts.push(format!("takes no new pods now: {}", node.blocked_by.join(", ")));
    }
    parts.join("; ")
}

fn notes(out: &mut String, notes: &[String], width: usize) {
    if !notes.is_empty() {
        out.push('\n');
    }
    for note in notes {
        hanging(out, &format!("note: {note}"), width, 0, 6);
    }
}
