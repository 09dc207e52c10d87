//! Which address a request came from. Behind proxies the peer is the last of them, and `X-Forwarded-For` says what is
//! before it; but any client can write that header, so an entry counts only when a proxy that is trusted added it.

use std::net::IpAddr;
use std::str::FromStr;

/// A range of addresses in CIDR notation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cidr {
    network: u128,
    mask: u128,
}

/// What is no range of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address range; write one like 10.0.0.0/8, fd00::/8 or 192.0.2.7")]
pub struct NotACidr(String);

/// IPv4 as the IPv6 addresses that stand for it, so that both are compared in one way.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(four) => four.to_ipv6_mapped().to_bits(),
        IpAddr::V6(six) => six.to_bits(),
    }
}

impl FromStr for Cidr {
    type Err = NotACidr;

    fn from_str(text: &str) -> Result<Self, NotACidr> {
        let refuse = || NotACidr(text.to_owned());
        let (address, length) = text.split_once('/').unwrap_or((text, ""));
        let address: IpAddr = address.parse().map_err(|_| refuse())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let length: u32 = if text.contains('/') { length.parse().map_err(|_| refuse())? } else { most };
        if length > most {
            return Err(refuse());
        }
        let mask = u128::MAX.checked_shl(most - length).unwrap_or(0);
        Ok(Self { network: bits(address) & mask, mask })
    }
}

impl Cidr {
    /// Whether this address is in the range.
    pub fn contains(self, address: IpAddr) -> bool {
        bits(address) & self.mask == self.network
    }
}

/// The proxies whose word is taken.
#[derive(Debug, Clone, Default)]
pub struct Proxies(Vec<Cidr>);

impl Proxies {
    /// These and no others.
    pub fn new(trusted: Vec<Cidr>) -> Self {
        Self(trusted)
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.0.iter().any(|range| range.contains(address))
    }

    /// The client: from the peer backwards, the first address that is no trusted proxy. `forwarded` are the
    /// `X-Forwarded-For` headers in order. Something that is no address ends the way back.
    pub fn client<'a>(&self, peer: IpAddr, forwarded: impl DoubleEndedIterator<Item = &'a str>) -> IpAddr {
        let mut client = peer.to_canonical();
        for hop in forwarded.rev().flat_map(|header| header.rsplit(',')) {
            if !self.trusts(client) {
                break;
            }
            let Ok(before) = hop.trim().parse::<IpAddr>() else { break };
            client = before.to_canonical();
        }
        client
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rstest::rstest;

    fn client(trusted: &[&str], peer: &str, forwarded: &[&str]) -> String {
        let proxies = Proxies::new(trusted.iter().map(|text| text.parse().unwrap()).collect());
        proxies.client(peer.parse().unwrap(), forwarded.iter().copied()).to_string()
    }

    #[rstest]
    #[case::nobody_is_trusted(&[], "10.0.0.1", &["203.0.113.7"], "10.0.0.1")]
    #[case::one_proxy(&["10.0.0.0/8"], "10.0.0.1", &["203.0.113.7"], "203.0.113.7")]
    #[case::the_client_lies(&["10.0.0.0/8"], "10.0.0.1", &["1.2.3.4, 203.0.113.7"], "203.0.113.7")]
    #[case::it_lies_in_a_header_of_its_own(&["10.0.0.0/8"], "10.0.0.1", &["1.2.3.4", "203.0.113.7"], "203.0.113.7")]
    #[case::two_proxies(&["10.0.0.0/8"], "10.0.0.1", &["1.2.3.4, 203.0.113.7, 10.9.9.9"], "203.0.113.7")]
    #[case::a_client_within_the_range(&["10.0.0.0/8"], "10.0.0.1", &["10.3.3.3"], "10.3.3.3")]
    #[case::not_through_the_proxy(&["10.0.0.0/8"], "203.0.113.7", &["1.2.3.4"], "203.0.113.7")]
    #[case::nonsense(&["10.0.0.0/8"], "10.0.0.1", &["1.2.3.4, unknown"], "10.0.0.1")]
    #[case::no_header(&["10.0.0.0/8"], "10.0.0.1", &[], "10.0.0.1")]
    #[case::six(&["fd00::/8"], "fd00::1", &["2001:db8::1"], "2001:db8::1")]
    #[case::four_in_six(&["10.0.0.0/8"], "::ffff:10.0.0.1", &["203.0.113.7"], "203.0.113.7")]
    #[case::six_is_not_four(&["::/96"], "10.0.0.1", &["203.0.113.7"], "10.0.0.1")]
    fn the_client_is_the_first_hop_that_nobody_vouches_for(
        #[case] trusted: &[&str],
        #[case] peer: &str,
        #[case] forwarded: &[&str],
        #[case] expected: &str,
    ) {
        assert_eq!(client(trusted, peer, forwarded), expected);
    }

    #[test]
    fn ranges_are_what_they_say() {
        for (range, inside, outside) in [
            ("192.0.2.7", "192.0.2.7", "192.0.2.8"),
            ("192.0.2.0/31", "192.0.2.1", "192.0.2.2"),
            ("0.0.0.0/0", "255.1.2.3", "2001:db8::1"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::1"),
        ] {
            let range: Cidr = range.parse().unwrap();
            assert!(range.contains(inside.parse().unwrap()) && !range.contains(outside.parse().unwrap()), "{range:?}");
        }
        for bad in ["", "/8", "10.0.0.0/33", "10.0.0/8", "10.0.0.0/", "::/129", "proxy", "10.0.0.0/8/8", "10.0.0.0/-1"]
        {
            assert!(bad.parse::<Cidr>().is_err(), "{bad:?}");
        }
    }
}
