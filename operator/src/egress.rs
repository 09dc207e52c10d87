//! What a Workspace may open: its rules against the Organization's list and against the ranges that are closed to
//! everybody, such as those of pods and of metadata services. Pure.
use agentapi_crds::{names, workspace::EgressRule};
use std::{fmt, net::IpAddr, str::FromStr};

/// Closed wherever the cluster runs: link-local addresses, among them the metadata services of clouds, and loopback.
const ALWAYS_CLOSED: [&str; 5] = ["169.254.0.0/16", "127.0.0.0/8", "fe80::/10", "::1/128", "fd00:ec2::254/128"];
/// Namespaces of the cluster itself. The CRD refuses them too; a rule may be older than that.
const CLOSED_NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    address: IpAddr,
    length: u8,
}

/// The text is no range of addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no range of addresses; write it like 10.244.0.0/16")]
pub struct NoCidr(String);

impl FromStr for Cidr {
    type Err = NoCidr;

    fn from_str(text: &str) -> Result<Self, NoCidr> {
        let wrong = || NoCidr(text.to_owned());
        let (address, length) = text.trim().split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let length: u8 = length.parse().map_err(|_| wrong())?;
        Self::new(address, length).ok_or_else(wrong)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl Cidr {
    /// The range of this length around `address`.
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(v4) if length <= 32 => IpAddr::V4((u32::from(v4) & mask32(length)).into()),
            IpAddr::V6(v6) if length <= 128 => IpAddr::V6((u128::from(v6) & mask128(length)).into()),
            _ => return None,
        };
        Some(Self { address, length })
    }

    /// One address.
    pub fn host(address: IpAddr) -> Self {
        Self { address, length: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// Of IPv4 addresses?
    pub fn is_v4(&self) -> bool {
        self.address.is_ipv4()
    }

    /// The smallest range around this one and another of its family.
    #[must_use]
    pub fn around(self, other: &Self) -> Self {
        let mut around = self;
        while !around.contains(other) && around.length > 0 {
            around = Self::new(around.address, around.length - 1).unwrap_or(around);
        }
        around
    }

    /// Is every address of `other` in this range?
    pub fn contains(&self, other: &Self) -> bool {
        self.length <= other.length && Self::new(other.address, self.length).is_some_and(|cut| cut == *self)
    }
}

fn mask32(length: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
}

fn mask128(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

/// What is closed to every Workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    ranges: Vec<Cidr>,
    system_namespace: String,
}

impl Closed {
    /// The ranges of the cluster, added to those that are closed everywhere.
    pub fn new(cluster: impl IntoIterator<Item = Cidr>, system_namespace: &str) -> Self {
        let always = ALWAYS_CLOSED.iter().filter_map(|range| range.parse().ok());
        let mut ranges: Vec<Cidr> = always.chain(cluster).collect();
        ranges.sort_unstable();
        ranges.dedup();
        // A range within another says nothing new.
        let all = ranges.clone();
        ranges.retain(|range| !all.iter().any(|other| other != range && other.contains(range)));
        Self { ranges, system_namespace: system_namespace.to_owned() }
    }

    fn namespace(&self, name: &str) -> bool {
        let of_tenants = name.starts_with("agentapi-") && name != "agentapi-demo";
        name == self.system_namespace
            || name == names::SYSTEM_NAMESPACE
            || of_tenants
            || CLOSED_NAMESPACES.contains(&name)
    }
}

/// A rule that is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Where to.
    pub to: Destination,
    /// TCP ports; none means all.
    pub ports: Vec<i32>,
}

/// Where a rule leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A range of addresses without those that are closed.
    Addresses(Cidr, Vec<Cidr>),
    /// The pods of a namespace.
    Namespace(String),
}

/// What is in force, and what is not and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Rules that are in force.
    pub open: Vec<Opening>,
    /// One sentence for each rule that is not.
    pub refused: Vec<String>,
}

/// Decide about the rules of a Workspace, given the Organization's list.
pub fn decide(rules: &[EgressRule], allowed: Option<&[EgressRule]>, closed: &Closed) -> Decision {
    let mut decision = Decision::default();
    for (index, rule) in rules.iter().enumerate() {
        match opening(rule, allowed, closed) {
            Ok(opening) => decision.open.push(opening),
            Err(why) => decision.refused.push(format!("egress[{index}] {why}")),
        }
    }
    decision
}

fn opening(rule: &EgressRule, allowed: Option<&[EgressRule]>, closed: &Closed) -> Result<Opening, String> {
    let to = match (&rule.cidr, &rule.namespace) {
        (Some(cidr), None) => {
            let range: Cidr = cidr.parse().map_err(|error: NoCidr| error.to_string())?;
            if let Some(around) = closed.ranges.iter().find(|closed| closed.contains(&range)) {
                return Err(format!(
                    "({cidr}) lies in {around}, which is closed to session pods: addresses of the cluster and link-local ones; \
                     name a namespace instead, or take the rule out"
                ));
            }
            let except = closed.ranges.iter().copied().filter(|closed| range.contains(closed)).collect();
            Destination::Addresses(range, except)
        }
        (None, Some(namespace)) => {
            if closed.namespace(namespace) {
                return Err(format!(
                    "(namespace {namespace}) is closed to session pods: what runs there can reach other tenants or the whole \
                     cluster; take the rule out"
                ));
            }
            Destination::Namespace(namespace.clone())
        }
        _ => return Err("must name exactly one of cidr and namespace".to_owned()),
    };
    let what = rule.cidr.clone().or_else(|| rule.namespace.as_ref().map(|name| format!("namespace {name}")));
    if !admits(allowed, &to, &rule.ports) {
        return Err(format!(
            "({}{}) is not in spec.allowedEgress of the Organization; the platform team can add it there",
            what.unwrap_or_default(),
            if rule.ports.is_empty() { String::new() } else { format!(", ports {:?}", rule.ports) },
        ));
    }
    Ok(Opening { to, ports: rule.ports.clone() })
}

/// Without a list, addresses outside of the cluster are open and namespaces are not: what runs in them is somebody's.
fn admits(allowed: Option<&[EgressRule]>, to: &Destination, ports: &[i32]) -> bool {
    let Some(allowed) = allowed else { return matches!(to, Destination::Addresses(..)) };
    allowed.iter().any(|rule| {
        let place = match to {
            Destination::Addresses(range, _) => {
                rule.cidr.as_ref().and_then(|cidr| cidr.parse::<Cidr>().ok()).is_some_and(|wide| wide.contains(range))
            }
            Destination::Namespace(name) => rule.namespace.as_ref() == Some(name),
        };
        place && (rule.ports.is_empty() || (!ports.is_empty() && ports.iter().all(|port| rule.ports.contains(port))))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn rules(rules: Value) -> Vec<EgressRule> {
        serde_json::from_value(rules).unwrap()
    }

    fn closed() -> Closed {
        let cluster = ["10.244.0.0/16", "10.244.7.0/24", "10.96.0.0/12"].map(|range| range.parse().unwrap());
        Closed::new(cluster, "agents")
    }

    #[test]
    fn the_whole_internet_is_without_the_cluster_and_without_metadata() {
        let decision = decide(&rules(json!([{"cidr": "0.0.0.0/0", "ports": [443]}])), None, &closed());
        let Destination::Addresses(range, except) = &decision.open[0].to else { unreachable!() };
        assert_eq!(range.to_string(), "0.0.0.0/0");
        let except: Vec<String> = except.iter().map(ToString::to_string).collect();
        assert_eq!(except, ["10.96.0.0/12", "10.244.0.0/16", "127.0.0.0/8", "169.254.0.0/16"]);
        let v6 = decide(&rules(json!([{"cidr": "::/0"}])), None, &closed());
        let Destination::Addresses(_, except) = &v6.open[0].to else { unreachable!() };
        assert!(except.contains(&"fe80::/10".parse().unwrap()) && except.iter().all(|range| range.address.is_ipv6()));
    }

    #[test]
    fn what_lies_in_the_cluster_is_refused_with_a_reason() {
        for cidr in ["10.244.1.2/32", "10.97.0.0/16", "169.254.169.254/32", "10.244.0.0/16", "10.244.9.9/17"] {
            let decision =
                decide(&rules(json!([{"cidr": cidr}])), Some(&rules(json!([{"cidr": "0.0.0.0/0"}]))), &closed());
            assert!(decision.open.is_empty(), "{cidr}");
            assert!(decision.refused[0].starts_with(&format!("egress[0] ({cidr}) lies in ")), "{:?}", decision.refused);
        }
        for namespace in ["kube-system", "default", "agents", "agentapi-system", "agentapi-globex"] {
            let wanted = rules(json!([{"namespace": namespace}]));
            let decision = decide(&wanted, Some(&wanted), &closed());
            assert!(decision.refused[0].contains("is closed to session pods"), "{:?}", decision.refused);
        }
    }

    #[test]
    fn the_organizations_list_decides_about_the_rest() {
        let wanted = rules(json!([
            {"cidr": "203.0.113.0/25", "ports": [443]}, {"cidr": "203.0.113.0/25"}, {"cidr": "203.0.112.0/23", "ports": [443]},
            {"namespace": "agentapi-demo", "ports": [8000]}, {"namespace": "monitoring"},
        ]));
        let list = rules(json!([{"cidr": "203.0.113.0/24", "ports": [443, 8443]}, {"namespace": "agentapi-demo"}]));
        let decision = decide(&wanted, Some(&list), &closed());
        assert_eq!(decision.open.len(), 2);
        assert_eq!(decision.refused.len(), 3);
        assert!(decision.refused[2].contains("namespace monitoring"), "{:?}", decision.refused);
        assert!(decide(&wanted, Some(&[]), &closed()).open.is_empty(), "an empty list opens nothing");
        let without = decide(&wanted, None, &closed());
        assert_eq!(without.open.len(), 3, "addresses outside of the cluster");
        assert!(without.refused.iter().all(|why| why.contains("namespace")));
    }

    proptest! {
        #[test]
        fn containing_is_what_the_addresses_say(a: u32, b: u32, one in 0_u8..=32, two in 0_u8..=32) {
            let (wide, narrow) = (Cidr::new(IpAddr::V4(a.into()), one).unwrap(), Cidr::new(IpAddr::V4(b.into()), two).unwrap());
            let inside = one <= two && (a & mask32(one)) == (b & mask32(one));
            prop_assert_eq!(wide.contains(&narrow), inside);
            prop_assert_eq!(wide.to_string().parse::<Cidr>().unwrap(), wide);
        }

        #[test]
        fn nothing_closed_is_ever_open(a: u32, length in 0_u8..=32) {
            let cidr = Cidr::new(IpAddr::V4(a.into()), length).unwrap().to_string();
            for opening in decide(&rules(json!([{"cidr": cidr}])), None, &closed()).open {
                let Destination::Addresses(range, except) = opening.to else { unreachable!() };
                for closed in closed().ranges {
                    prop_assert!(!closed.contains(&range));
                    prop_assert!(!range.contains(&closed) || except.contains(&closed));
                }
            }
        }
    }
}
