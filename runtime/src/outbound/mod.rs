//! The only way out to addresses that tenants name. A URL is looked at before anything is sent, and what its name
//! resolves to is looked at when the connection is made, so that a name cannot mean another address by then. Redirects
//! are not followed: whoever configures a server writes where it is. May touch: the network, in the way said here.

mod addresses;
mod body;

use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use moka::sync::Cache;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, Method, RequestBuilder};
use tokio::sync::Semaphore;
use url::{Host, Url};

pub use addresses::{Ranges, refused};
pub use body::{BodyError, read_held, read_limited};

/// Longest URL that is looked at.
const MAX_URL_BYTES: usize = 2048;
/// Connections that are kept open to one server.
const IDLE_CONNECTIONS: usize = 8;
/// Many servers close theirs after five seconds, and what meets the end of a connection is not sent again.
const IDLE: Duration = Duration::from_secs(4);
/// Names that are looked up at a time. Each takes one of the 512 threads that the database and the cluster need too, for
/// as long as the server of the name likes.
const MOST_LOOKUPS: usize = 64;
const LOOKUP_PATIENCE: Duration = Duration::from_secs(5);
/// Kinds of clients: one for each set of opened ranges, scheme and patience.
const MAX_CLIENTS: u64 = 1000;
/// One that nobody uses goes after this time.
const CLIENT_IDLE: Duration = Duration::from_secs(3600);

/// An address that is not called, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{target} is not called: {why}")]
pub struct Refused {
    /// Host or URL, as the tenant wrote it.
    pub target: String,
    /// What is wrong with it and what to do.
    pub why: String,
}

impl Refused {
    fn new(target: impl Into<String>, why: impl Into<String>) -> Self {
        Self { target: target.into(), why: why.into() }
    }

    fn address(host: &str, kind: &str) -> Self {
        let why = format!(
            "it is a {kind} address. A server has to be on the internet, or in an address range that your Organization \
             opens (spec.mcp.allowPrivateRanges)"
        );
        Self::new(host, why)
    }

    /// The refusal within an error of the HTTP client, if that is why it failed.
    pub fn within<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Self> {
        std::iter::successors(Some(error), |error| error.source()).find_map(|error| error.downcast_ref())
    }
}

/// Finds the addresses of a name.
pub type Lookup = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync>;

/// The system's resolver.
fn system() -> Lookup {
    bounded(MOST_LOOKUPS, |name| Ok((name, 0).to_socket_addrs()?.map(|it| it.ip()).collect()))
}

fn bounded(most: usize, find: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Clone + Send + Sync + 'static) -> Lookup {
    let places = Arc::new(Semaphore::new(most));
    Arc::new(move |name| {
        let (places, find) = (Arc::clone(&places), find.clone());
        async move {
            let place =
                tokio::time::timeout(LOOKUP_PATIENCE, places.acquire_owned()).await.map_err(io::Error::other)?;
            let place = place.map_err(io::Error::other)?;
            let looking = tokio::task::spawn_blocking(move || {
                // The thread's: whoever waits for it may give up, and it goes on.
                let _place = place;
                find(&name)
            });
            looking.await.map_err(io::Error::other)?
        }
        .boxed()
    })
}

/// The way out.
#[derive(Clone)]
pub struct Outbound {
    open: Ranges,
    lookup: Lookup,
    clients: Cache<Kind, Client>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Kind {
    open: Ranges,
    plain: bool,
    /// Seconds: the next power of two, so that there are ten kinds of patience and not one for each number.
    connect: u64,
}

impl Outbound {
    /// With ranges that the platform itself opens, for all tenants.
    pub fn new(open: Ranges) -> Self {
        Self::with_lookup(open, system())
    }

    /// The same with another way to find the addresses of names.
    pub fn with_lookup(open: Ranges, lookup: Lookup) -> Self {
        let clients = Cache::builder().max_capacity(MAX_CLIENTS).time_to_idle(CLIENT_IDLE).build();
        Self { open, lookup, clients }
    }

    /// A request to a URL that a tenant has written, who has opened these ranges. It is refused here when the URL
    /// says enough; otherwise when its name has been resolved, and [`Refused::within`] finds that in the error.
    pub fn request(
        &self,
        method: Method,
        url: &str,
        allow: &Ranges,
        connect: Duration,
    ) -> Result<RequestBuilder, Refused> {
        let open = self.open.and(allow);
        let url = check(url, &open)?;
        let connect = connect.as_secs().max(1).checked_next_power_of_two().unwrap_or(u64::MAX);
        let kind = Kind { open, plain: url.scheme() == "http", connect };
        Ok(self.client(&kind)?.request(method, url))
    }

    /// Whether a URL would be called, as far as the URL itself says.
    pub fn check(&self, url: &str, allow: &Ranges) -> Result<Url, Refused> {
        check(url, &self.open.and(allow))
    }

    fn client(&self, kind: &Kind) -> Result<Client, Refused> {
        let made = self.clients.try_get_with_by_ref(kind, || {
            let guard = Guard { open: kind.open.clone(), plain: kind.plain, lookup: Arc::clone(&self.lookup) };
            Client::builder()
                .redirect(reqwest::redirect::Policy::none())
                // A proxy would resolve names itself, where nobody looks at the addresses.
                .no_proxy()
                .dns_resolver(guard)
                .connect_timeout(Duration::from_secs(kind.connect))
                .pool_max_idle_per_host(IDLE_CONNECTIONS)
                .pool_idle_timeout(IDLE)
                .user_agent(concat!("agentapi/", env!("CARGO_PKG_VERSION")))
                .build()
        });
        made.map_err(|error| Refused::new("the server", format!("cannot set up an HTTP client: {error}")))
    }
}

fn check(text: &str, open: &Ranges) -> Result<Url, Refused> {
    if text.len() > MAX_URL_BYTES {
        return Err(Refused::new("the URL", format!("it is longer than {MAX_URL_BYTES} bytes")));
    }
    let url = Url::parse(text).map_err(|error| {
        Refused::new("the URL", format!("it is none ({error}); write one like https://mcp.example.com/mcp"))
    })?;
    let host = url.host_str().unwrap_or_default().to_owned();
    if !matches!(url.scheme(), "https" | "http") {
        return Err(Refused::new(host, "only https:// URLs are called, and http:// in opened address ranges"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Refused::new(host, "credentials do not belong in a URL; name a Secret in auth"));
    }
    let literal = match url.host() {
        Some(Host::Ipv4(four)) => Some(IpAddr::V4(four)),
        Some(Host::Ipv6(six)) => Some(IpAddr::V6(six)),
        Some(Host::Domain(_)) => None,
        None => return Err(Refused::new("the URL", "it names no host")),
    };
    if let Some(address) = literal {
        judge(&host, address, open, url.scheme() == "http")?;
    }
    Ok(url)
}

fn judge(host: &str, address: IpAddr, open: &Ranges, plain: bool) -> Result<(), Refused> {
    if let Some(kind) = refused(address, open) {
        return Err(Refused::address(host, kind));
    }
    if plain && !open.contain(address.to_canonical()) {
        return Err(Refused::new(host, "http:// would show everything to everybody on the way; write https://"));
    }
    Ok(())
}

/// Resolves names for one kind of client.
struct Guard {
    open: Ranges,
    plain: bool,
    lookup: Lookup,
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let (host, open, plain) = (name.as_str().to_owned(), self.open.clone(), self.plain);
        let looking = (self.lookup)(host.clone());
        Box::pin(async move {
            let addresses = looking.await?;
            // One bad address among good ones is refused too: which of them is taken is not for us to choose.
            for address in &addresses {
                judge(&host, *address, &open, plain)?;
            }
            let addresses: Addrs = Box::new(addresses.into_iter().map(|address| (address, 0).into()));
            Ok(addresses)
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use rstest::rstest;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Mutex, mpsc};
    use std::time::Instant;

    fn nowhere() -> Lookup {
        Arc::new(|name| {
            async move {
                Ok(match name.as_str() {
                    "inside.example" => vec!["10.0.0.1".parse().unwrap()],
                    "both.example" => vec!["1.1.1.1".parse().unwrap(), "127.0.0.1".parse().unwrap()],
                    "mapped.example" => vec!["::ffff:169.254.169.254".parse().unwrap()],
                    _ => vec!["1.1.1.1".parse().unwrap()],
                })
            }
            .boxed()
        })
    }

    fn outbound(open: &[&str]) -> Outbound {
        Outbound::with_lookup(Ranges::new(open.iter().map(|text| text.parse().unwrap())), nowhere())
    }

    #[rstest]
    #[case::scheme("ftp://mcp.example.com/", "only https")]
    #[case::gopher("gopher://127.0.0.1:5432/_x", "only https")]
    #[case::no_url("mcp.example.com", "write one like")]
    #[case::relative("//evil.example/", "write one like")]
    #[case::user("https://user@mcp.example.com/", "credentials")]
    #[case::password("https://:secret@mcp.example.com/", "credentials")]
    #[case::plain("http://1.1.1.1/", "https://")]
    #[case::loopback("https://127.0.0.1/", "loopback")]
    #[case::decimal("https://2130706433/", "loopback")]
    #[case::octal("https://0177.0.0.1/", "loopback")]
    #[case::hex("https://0x7f.1/", "loopback")]
    #[case::short("https://127.1/", "loopback")]
    #[case::dot("https://127.0.0.1./", "loopback")]
    #[case::wide("https://１２７.0.0.1/", "loopback")]
    #[case::six("https://[::1]/", "loopback")]
    #[case::mapped("https://[::ffff:10.0.0.1]/", "private")]
    #[case::metadata("https://169.254.169.254/latest/meta-data/", "metadata")]
    fn bad_urls_are_refused_with_advice(#[case] url: &str, #[case] says: &str) {
        let refused = outbound(&[]).check(url, &Ranges::default()).unwrap_err();
        assert!(refused.to_string().contains(says), "{refused}");
        assert!(!refused.to_string().contains("secret"), "{refused}");
    }

    #[test]
    fn a_tenant_makes_no_more_than_ten_clients_and_throws_out_nobody_elses() {
        let outbound = outbound(&[]);
        for seconds in 1..=300 {
            let connect = Duration::from_secs(seconds);
            drop(outbound.request(Method::GET, "https://1.1.1.1/", &Ranges::default(), connect).unwrap());
        }
        outbound.clients.run_pending_tasks();
        assert_eq!(outbound.clients.entry_count(), 10);
    }

    #[tokio::test]
    async fn names_that_nobody_answers_leave_threads_to_others() {
        let begun = Arc::new(AtomicUsize::new(0));
        let (release, wait) = mpsc::channel::<()>();
        let (counted, wait) = (Arc::clone(&begun), Arc::new(Mutex::new(wait)));
        let lookup = bounded(3, move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            // Until the other end is dropped.
            let _ = wait.lock().unwrap().recv();
            Ok(Vec::new())
        });
        let given_up =
            (0..30).map(|n| tokio::time::timeout(Duration::from_millis(20), lookup(format!("{n}.slow.example"))));
        assert!(futures::future::join_all(given_up).await.iter().all(Result::is_err));
        let soon = Instant::now() + Duration::from_secs(10);
        while begun.load(Ordering::SeqCst) < 3 && Instant::now() < soon {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(begun.load(Ordering::SeqCst), 3, "whoever gives up leaves its thread at work");
        drop(release);
        assert!(lookup("quick.example".to_owned()).await.unwrap().is_empty());
    }

    #[test]
    fn opened_ranges_take_http_and_others_do_not() {
        let outbound = outbound(&["10.0.0.0/8"]);
        assert!(outbound.check("http://10.0.0.1/mcp", &Ranges::default()).is_ok());
        assert!(outbound.check("http://192.168.0.1/mcp", &Ranges::default()).is_err());
        let own = Ranges::new(["192.168.0.0/24".parse().unwrap()]);
        assert!(outbound.check("http://192.168.0.1/mcp", &own).is_ok(), "what the organization opens is added");
        assert!(outbound.check("http://169.254.169.254/", &Ranges::new(["0.0.0.0/0".parse().unwrap()])).is_err());
    }

    #[rstest]
    #[case("https://inside.example/", "private")]
    #[case("https://both.example/", "loopback")]
    #[case("https://mapped.example/", "metadata")]
    #[case("http://outside.example/", "https://")]
    #[tokio::test]
    async fn names_are_judged_by_what_they_resolve_to(#[case] url: &str, #[case] says: &str) {
        let request = outbound(&[]).request(Method::GET, url, &Ranges::default(), Duration::from_secs(1)).unwrap();
        let error = request.send().await.unwrap_err();
        let refused = Refused::within(&error).unwrap_or_else(|| panic!("not refused: {error:?}"));
        assert!(refused.to_string().contains(says), "{refused}");
    }
}
