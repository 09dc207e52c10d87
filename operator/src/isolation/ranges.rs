//! The ranges of pods, Services and nodes, which no Workspace may open by address: from the chart's values and from the
//! cluster, as far as it tells. Reads nodes and ServiceCIDRs.
use crate::{
    apply::Applicable,
    context::Context,
    egress::{Cidr, Closed},
    error::{Error, Result},
};
use k8s_openapi::{
    ClusterResourceScope,
    api::{core::v1::Node, networking::v1::ServiceCIDR},
};
use kube::{Api, Resource, api::ListParams, runtime::reflector::ObjectRef};
use std::{net::IpAddr, time::Duration};

/// More ranges than this are covered by one that holds them all: a policy with thousands of exceptions helps nobody.
const MOST: usize = 64;

/// The first look: a policy that is built without the ranges would open them for a moment.
pub async fn first(context: &Context) {
    for _ in 0..10 {
        if refresh(context).await {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    tracing::error!("the cluster does not tell its ranges; only CLUSTER_RANGES are closed to Workspaces for now");
}

/// Look again, and reconcile the Workspaces when something is different. False: the cluster did not answer, and what was
/// known stays.
pub async fn refresh(context: &Context) -> bool {
    let Ok(discovered) =
        discovered(context).await.inspect_err(|error| tracing::warn!(%error, "can't read the cluster's ranges"))
    else {
        return false;
    };
    let mut ranges: Vec<Cidr> = Vec::new();
    for text in &context.config.cluster_ranges {
        match text.parse() {
            Ok(range) => ranges.push(range),
            Err(error) => tracing::error!(%error, "CLUSTER_RANGES"),
        }
    }
    ranges.extend(std::env::var("KUBERNETES_SERVICE_HOST").ok().and_then(|host| host.parse().ok()).map(Cidr::host));
    ranges.extend(covered(discovered));
    if context.isolation.set_closed(Closed::new(ranges, &context.config.system_namespace)) {
        tracing::info!(closed = ?context.closed(), "ranges that no Workspace may open");
        for workspace in context.stores.workspaces.state() {
            let _ = context.triggers.workspaces.unbounded_send(ObjectRef::from_obj(&*workspace));
        }
    }
    true
}

async fn discovered(context: &Context) -> Result<Vec<Cidr>> {
    let nodes: Vec<Node> = list(context).await?;
    let services: Vec<ServiceCIDR> = list(context).await?;
    let services = services.iter().filter_map(|range| range.spec.as_ref()).flat_map(|spec| spec.cidrs.iter().flatten());
    Ok(nodes.iter().flat_map(of_node).chain(services.filter_map(|cidr| cidr.parse().ok())).collect())
}

/// Nothing, where we have no right or where Kubernetes is older than the kind (ServiceCIDR: 1.33).
async fn list<K>(context: &Context) -> Result<Vec<K>>
where
    K: Applicable + Resource<Scope = ClusterResourceScope>,
{
    match Api::<K>::all(context.client.clone()).list(&ListParams::default()).await {
        Ok(list) => Ok(list.items),
        Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => {
            tracing::debug!(kind = %K::kind(&()), "can't be listed; the chart's values have to say it");
            Ok(Vec::new())
        }
        Err(error) => Err(Error::kube("list", &K::kind(&()), "all", error)),
    }
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
