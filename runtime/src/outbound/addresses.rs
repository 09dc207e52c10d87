//! Which addresses a tenant may name. Everything that is not plainly somebody's server on the internet is refused;
//! an address range that was opened takes that back, but never for addresses that hand out a machine's credentials.
//! Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::audit::proxies::Cidr;

/// Address ranges that were opened on purpose.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Ranges(Arc<[Cidr]>);

impl Ranges {
    /// These and no others.
    pub fn new(ranges: impl IntoIterator<Item = Cidr>) -> Self {
        Self(ranges.into_iter().collect())
    }

    /// Whether one of them has this address.
    pub fn contain(&self, address: IpAddr) -> bool {
        self.0.iter().any(|range| range.contains(address))
    }

    /// These and those.
    #[must_use]
    pub fn and(&self, others: &Self) -> Self {
        Self::new(self.0.iter().chain(others.0.iter()).copied())
    }
}

/// Addresses that clouds answer on with the credentials of the machine that asks; most of them are within the ranges
/// below, but opening those must not open these.
const METADATA: &[IpAddr] = &[
    // Amazon, Google, Azure, DigitalOcean and others are on 169.254.169.254, which is link-local: see `never`.
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)), // Alibaba
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),   // Azure's own
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),     // Oracle
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x254)), // Amazon
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x23)), // Amazon, pods
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x254)), // Google
];

/// IPv4 networks that are no servers on the internet, with what they are (RFC 6890 and its registry).
const FOUR: &[(Ipv4Addr, u32, &str)] = &[
    (Ipv4Addr::UNSPECIFIED, 8, "this network"),
    (Ipv4Addr::new(10, 0, 0, 0), 8, "private"),
    (Ipv4Addr::new(100, 64, 0, 0), 10, "carrier-grade NAT"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "loopback"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "link-local"),
    (Ipv4Addr::new(172, 16, 0, 0), 12, "private"),
    (Ipv4Addr::new(192, 0, 0, 0), 24, "protocol assignments"),
    (Ipv4Addr::new(192, 0, 2, 0), 24, "documentation"),
    (Ipv4Addr::new(192, 88, 99, 0), 24, "6to4 relay"),
    (Ipv4Addr::new(192, 168, 0, 0), 16, "private"),
    (Ipv4Addr::new(198, 18, 0, 0), 15, "benchmarking"),
    (Ipv4Addr::new(198, 51, 100, 0), 24, "documentation"),
    (Ipv4Addr::new(203, 0, 113, 0), 24, "documentation"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "multicast"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "reserved"),
];

/// The same for IPv6, within what is not refused as a whole: see `six`.
const SIX: &[(Ipv6Addr, u32, &str)] = &[
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23, "protocol assignments"),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32, "documentation"),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16, "6to4"),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20, "documentation"),
];

/// Why an address is refused; `None`: it is not.
pub fn refused(address: IpAddr, open: &Ranges) -> Option<&'static str> {
    let address = plain(address);
    if never(address) {
        return Some("link-local or a cloud's metadata service");
    }
    if open.contain(address) {
        return None;
    }
    match address {
        IpAddr::V4(four) => {
            let within = |&(network, length, _): &(Ipv4Addr, u32, &str)| {
                (four.to_bits() ^ network.to_bits()) >> (32 - length) == 0
            };
            FOUR.iter().find(|range| within(range)).map(|range| range.2)
        }
        IpAddr::V6(address) => six(address),
    }
}

/// The address that packets go to: an IPv4 address may be written as several kinds of IPv6 address.
fn plain(address: IpAddr) -> IpAddr {
    let IpAddr::V6(six) = address else { return address };
    let four = |high: u16, low: u16| IpAddr::V4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    match six.segments() {
        // ::a.b.c.d of old, but not :: and ::1.
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => four(high, low),
        // ::ffff:a.b.c.d, and what SIIT and NAT64 translate (RFC 7915, 6052, 8215).
        [0, 0, 0, 0, 0, 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x64, 0xff9b, 1, _, _, _, high, low] => four(high, low),
        _ => address,
    }
}

fn never(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(four) => four.is_link_local(),
        IpAddr::V6(six) => six.is_unicast_link_local(),
    };
    link_local || METADATA.contains(&address)
}

fn six(address: Ipv6Addr) -> Option<&'static str> {
    let first = address.segments()[0];
    if address.is_unspecified() || address.is_loopback() {
        return Some("loopback");
    }
    match first {
        0xfc00..=0xfdff => return Some("private"),
        0xfec0..=0xfeff => return Some("site-local"),
        0xff00.. => return Some("multicast"),
        // Only 2000::/3 is given out to anybody.
        0x2000..=0x3fff => {}
        _ => return Some("reserved"),
    }
    let within =
        |&(network, length, _): &(Ipv6Addr, u32, &str)| (address.to_bits() ^ network.to_bits()) >> (128 - length) == 0;
    SIX.iter().find(|range| within(range)).map(|range| range.2)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rstest::rstest;

    fn ranges(texts: &[&str]) -> Ranges {
        Ranges::new(texts.iter().map(|text| text.parse().unwrap()))
    }

    #[rstest]
    #[case::unspecified(&["0.0.0.0", "0.1.2.3", "::"])]
    #[case::loopback(&["127.0.0.1", "127.255.255.254", "::1"])]
    #[case::private(&["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fc00::1", "fdff::1", "fec0::1"])]
    #[case::shared(&["100.64.0.1", "100.127.255.255"])]
    #[case::link_local(&["169.254.1.1", "fe80::1", "febf::1"])]
    #[case::metadata(&["169.254.169.254", "fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192", "fd20:ce::254"])]
    #[case::multicast(&["224.0.0.1", "239.255.255.255", "ff02::1"])]
    #[case::reserved(&["240.0.0.1", "255.255.255.255", "192.0.0.8", "198.18.0.1", "198.19.255.255", "100::1", "4000::1"])]
    #[case::documentation(&["192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1"])]
    #[case::mapped(&["::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254"])]
    #[case::compatible(&["::127.0.0.1", "::10.1.2.3"])]
    #[case::translated(&["64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::10.0.0.1", "::ffff:0:127.0.0.1"])]
    #[case::tunnels(&["2002:7f00:1::", "2001:0:7f00:1::", "2001:20::1"])]
    fn what_is_no_server_on_the_internet_is_refused(#[case] addresses: &[&str]) {
        for address in addresses {
            assert!(refused(address.parse().unwrap(), &Ranges::default()).is_some(), "{address}");
        }
    }

    #[test]
    fn neighbours_of_those_networks_are_not() {
        for address in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00:1450::8a",
            "64:ff9b::101:101",
            "::ffff:1.1.1.1",
            "2001:4860::8888",
        ] {
            assert_eq!(refused(address.parse().unwrap(), &Ranges::default()), None, "{address}");
        }
    }

    #[test]
    fn what_is_opened_is_open_however_it_is_written_and_the_rest_is_not() {
        let open = ranges(&["10.1.0.0/16", "fd12::/16"]);
        for address in ["10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::a01:203", "fd12::1"] {
            assert_eq!(refused(address.parse().unwrap(), &open), None, "{address}");
        }
        for address in ["10.2.0.1", "127.0.0.1", "fd13::1"] {
            assert!(refused(address.parse().unwrap(), &open).is_some(), "{address}");
        }
    }

    #[test]
    fn metadata_services_stay_closed_whatever_is_opened() {
        let open = ranges(&["0.0.0.0/0", "::/0"]);
        assert_eq!(refused("10.2.0.1".parse().unwrap(), &open), None);
        for address in [
            "169.254.169.254",
            "169.254.170.2",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "fd00:ec2::254",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "fe80::1",
            "fd20:ce::254",
        ] {
            assert!(refused(address.parse().unwrap(), &open).is_some(), "{address}");
        }
    }
}
