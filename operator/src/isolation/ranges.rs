//! The ranges of pods, Services and nodes, which no Workspace may open by address: from the chart's values and from the
//! cluster, as far as it tells. Reads nodes and ServiceCIDRs.
use crate::{
    context::Context,
    egress::{Cidr, Closed},
};
use k8s_openapi::api::{core::v1::Node, networking::v1::ServiceCIDR};
use kube::{Api, api::ListParams, runtime::reflector::ObjectRef};
use std::net::IpAddr;

/// More ranges than this are covered by one that holds them all: a policy with thousands of exceptions helps nobody.
const MOST: usize = 64;

/// Look again, and reconcile the Workspaces when something is different.
pub async fn refresh(context: &Context) {
    let mut ranges: Vec<Cidr> = Vec::new();
    for text in &context.config.cluster_ranges {
        match text.parse() {
            Ok(range) => ranges.push(range),
            Err(error) => tracing::error!(%error, "CLUSTER_RANGES"),
        }
    }
    ranges.extend(std::env::var("KUBERNETES_SERVICE_HOST").ok().and_then(|host| host.parse().ok()).map(Cidr::host));
    ranges.extend(covered(discovered(context).await));
    if context.isolation.set_closed(Closed::new(ranges, &context.config.system_namespace)) {
        tracing::info!(closed = ?context.closed(), "ranges that no Workspace may open");
        for workspace in context.stores.workspaces.state() {
            let _ = context.triggers.workspaces.unbounded_send(ObjectRef::from_obj(&*workspace));
        }
    }
}

async fn discovered(context: &Context) -> Vec<Cidr> {
    let mut ranges = Vec::new();
    match Api::<Node>::all(context.client.clone()).list(&ListParams::default()).await {
        Ok(nodes) => ranges.extend(nodes.items.iter().flat_map(of_node)),
        Err(error) => tracing::debug!(%error, "can't list nodes; only the values of the chart say where pods are"),
    }
    match Api::<ServiceCIDR>::all(context.client.clone()).list(&ListParams::default()).await {
        Ok(services) => ranges.extend(
            services.items.iter().filter_map(|range| range.spec.as_ref()).flat_map(|spec| {
                spec.cidrs.iter().flatten().filter_map(|cidr| cidr.parse().ok()).collect::<Vec<Cidr>>()
            }),
        ),
        Err(error) => tracing::debug!(%error, "can't list ServiceCIDRs; Kubernetes has them from 1.33 on"),
    }
    ranges
}

fn of_node(node: &Node) -> Vec<Cidr> {
    let pods = node.spec.iter().flat_map(|spec| spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr));
    let own = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let own = own.filter_map(|address| address.address.parse::<IpAddr>().ok()).map(Cidr::host);
    pods.filter_map(|cidr| cidr.parse().ok()).chain(own).collect()
}

fn covered(ranges: Vec<Cidr>) -> Vec<Cidr> {
    if ranges.len() <= MOST {
        return ranges;
    }
    let (v4, v6): (Vec<Cidr>, Vec<Cidr>) = ranges.into_iter().partition(Cidr::is_v4);
    [v4, v6].into_iter().filter_map(|family| family.into_iter().reduce(|one, other| one.around(&other))).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_tells_where_its_pods_and_itself_are() {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "a"}, "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.168.7.3"}, {"type": "Hostname", "address": "a"}]},
        }))
        .unwrap();
        let mut shown: Vec<String> = of_node(&node).iter().map(ToString::to_string).collect();
        shown.dedup();
        shown.sort();
        shown.dedup();
        assert_eq!(shown, ["10.244.1.0/24", "192.168.7.3/32", "fd00:1::/64"]);
    }

    #[test]
    fn many_ranges_become_one_that_holds_them() {
        let many: Vec<Cidr> = (0..100).map(|n| format!("10.244.{n}.0/24").parse().unwrap()).collect();
        let covered = covered(many.clone());
        assert_eq!(covered.len(), 1);
        assert_eq!(covered[0].to_string(), "10.244.0.0/17");
        assert!(many.iter().all(|range| covered[0].contains(range)));
    }
}
