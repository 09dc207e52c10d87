//! Ports and addresses for servers that can't be handed a socket. Between finding a free port and listening on it,
//! anybody's outgoing connection may be given that very port, and a test then talks to a stranger. May touch: UDP ports
//! of the loopback.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

/// Below the ports that Linux gives to connections (`ip_local_port_range`) and those of Kubernetes' NodePorts.
const RANGE: Range<u16> = 20_000..30_000;

/// Another test's process can't have a UDP socket with the same number: a lock that ends with the process.
static RESERVED: Mutex<Vec<UdpSocket>> = Mutex::new(Vec::new());

/// A port on which nothing listens, and which no other call gives out as long as this process lives.
pub fn reserve() -> Result<u16> {
    let first = u16::try_from(RandomState::new().hash_one(()) % RANGE.len() as u64)?;
    let all = (RANGE.start + first..RANGE.end).chain(RANGE.start..RANGE.start + first);
    let free = |port| {
        let lock = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).ok()?;
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).ok()?;
        Some((port, lock))
    };
    let (port, lock) = all.into_iter().find_map(free).context("no free port")?;
    RESERVED.lock().unwrap_or_else(PoisonError::into_inner).push(lock);
    Ok(port)
}

/// A loopback address at which nothing listens on this port, and which no other call gives out for it as long as this
/// process lives.
pub fn reserve_address(port: u16) -> Result<Ipv4Addr> {
    let random = RandomState::new();
    // Not 127.0.0.0/16, where others are.
    let addresses = (0..100_u8).map(|n| {
        let [a, b, c, ..] = random.hash_one(n).to_be_bytes();
        Ipv4Addr::new(127, a.max(1), b, c.clamp(1, 254))
    });
    let free = |address| {
        let lock = UdpSocket::bind((address, port)).ok()?;
        TcpListener::bind((address, port)).ok()?;
        Some((address, lock))
    };
    let (address, lock) = addresses.into_iter().find_map(free).context("no free address")?;
    RESERVED.lock().unwrap_or_else(PoisonError::into_inner).push(lock);
    Ok(address)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn no_port_is_given_out_twice_and_none_can_be_a_connections() {
        let ports: Vec<u16> = (0..50).map(|_| reserve().unwrap()).collect();
        let mut different = ports.clone();
        different.sort_unstable();
        different.dedup();
        assert_eq!(different.len(), ports.len());
        let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        let lowest: u16 = range.split_whitespace().next().unwrap().parse().unwrap();
        assert!(ports.iter().all(|port| *port < lowest), "{ports:?} and {range}");
    }

    #[test]
    fn an_address_is_given_out_once_and_not_while_somebody_listens() {
        let address = reserve_address(3299).unwrap();
        assert!(UdpSocket::bind((address, 3299)).is_err(), "another process could have it");
        assert!(TcpListener::bind((address, 3299)).is_ok(), "its owner can listen");
        assert_ne!(reserve_address(3299).unwrap(), address);
    }
}
