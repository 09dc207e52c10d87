//! What each image is made of.

use std::cell::{OnceCell, RefCell};
use std::path::Path;
use std::thread::ScopedJoinHandle;

use anyhow::{Context, Result, bail};

use super::archive::{Image, Run};
use super::binaries::{self, Binaries, FAKE_MODEL, OPERATOR, RUNTIME};
use super::debian::{self, Base};
use super::layer::{self, Entry, Layer};
use super::node::{self, Node};
use super::python;
use super::session::{self, AGENT};
use crate::progress;

/// What `cargo xtask up` needs. Those that hold our binaries come last: cargo compiles while the others are made.
pub(super) const NAMES: [&str; 8] =
    ["postgres", "oidc", "mcp-server", "session-claude", "model-router", "fake-model", "operator", "runtime"];
/// Those that hold nothing of ours.
const WITHOUT_BINARIES: [&str; 3] = ["postgres", "oidc", "mcp-server"];

/// User of the images that hold one program.
const NOBODY: &str = "65532:65532";
/// Parts that several images share, made when the first one asks.
struct Parts<'scope> {
    base: OnceCell<Base>,
    node: OnceCell<Node>,
    compiling: RefCell<Option<ScopedJoinHandle<'scope, Result<Binaries>>>>,
    binaries: OnceCell<Binaries>,
}

/// All names: besides those of [`NAMES`], the session images of other agents, which are big and made only when asked for.
pub(super) fn names() -> Vec<String> {
    let mut names: Vec<String> = NAMES.iter().map(|name| (*name).to_owned()).collect();
    names.extend(session::names().into_iter().filter(|name| !NAMES.contains(&name.as_str())));
    names
}

/// Makes the layers of the named images.
pub(super) fn images(names: &[String], profile: &str) -> Result<Vec<Image>> {
    std::thread::scope(|scope| {
        let compiles = names.iter().any(|name| !WITHOUT_BINARIES.contains(&name.as_str()));
        let compiling = compiles.then(|| scope.spawn(|| binaries::build(profile)));
        let parts = Parts {
            base: OnceCell::new(),
            node: OnceCell::new(),
            compiling: RefCell::new(compiling),
            binaries: OnceCell::new(),
        };
        names.iter().map(|name| parts.image(name).with_context(|| format!("image {name}"))).collect()
    })
}

impl Parts<'_> {
    fn image(&self, name: &str) -> Result<Image> {
        let (layers, run) = match name {
            "postgres" => self.postgres()?,
            "oidc" => self.oidc()?,
            "mcp-server" => self.mcp_server()?,
            "fake-model" => {
                self.program(FAKE_MODEL.0, "usr/local/bin/fake-model", &["/usr/local/bin/fake-model"], &[8000])?
            }
            "operator" => self.program(
                OPERATOR.0,
                "usr/local/bin/agentapi-operator",
                &["/usr/local/bin/agentapi-operator"],
                &[8081],
            )?,
            "runtime" => self.program(
                RUNTIME.0,
                "usr/local/bin/agentapi-runtime",
                &["/usr/local/bin/agentapi-runtime"],
                &[8080, 8090, 9090],
            )?,
            "model-router" => self.model_router()?,
            _ => self.session(name)?,
        };
        Ok(Image { name: name.to_owned(), layers, run })
    }

    fn base(&self) -> Result<&Base> {
        made(&self.base, debian::base)
    }

    fn node(&self) -> Result<&Node> {
        made(&self.node, node::node)
    }

    fn binaries(&self) -> Result<&Binaries> {
        made(&self.binaries, || {
            let compiling = self.compiling.take().context("this image was said to need no binaries")?;
            progress::step("binaries", || {
                compiling.join().unwrap_or_else(|_| bail!("the thread that runs cargo stopped; run the command again"))
            })
        })
    }

    /// One binary: from scratch if it is static, with what it reads: authorities for TLS, names of users, how to look up hosts.
    fn program(
        &self,
        binary: &str,
        target: &'static str,
        entrypoint: &[&'static str],
        ports: &[u16],
    ) -> Result<(Vec<Layer>, Run)> {
        let file = |target, body: &str| Entry::Content { target, mode: 0o644, body: body.as_bytes().to_vec() };
        let system = layer::of_entries(
            "system files",
            vec![
                file("etc/passwd", "root:x:0:0::/:/sbin/nologin\nnonroot:x:65532:65532::/tmp:/sbin/nologin\n"),
                file("etc/group", "root:x:0:\nnonroot:x:65532:\n"),
                file("etc/nsswitch.conf", "hosts: files dns\n"),
                Entry::Copy {
                    target: "etc/ssl/certs/ca-certificates.crt",
                    mode: 0o644,
                    source: self.base()?.certificates(),
                },
                Entry::Folder { target: "tmp", mode: 0o1777, owner: 0 },
            ],
        )?;
        let binaries = self.binaries()?;
        let program =
            layer::of_entries(binary, vec![Entry::Copy { target, mode: 0o755, source: binaries.path(binary) }])?;
        let run =
            Run { entrypoint: entrypoint.to_vec(), user: NOBODY, folder: "/", ports: ports.to_vec(), ..Run::default() };
        let below = if binaries.is_static { system } else { self.base()?.layer.clone() };
        Ok((vec![below, program], run))
    }

    fn postgres(&self) -> Result<(Vec<Layer>, Run)> {
        let base = self.base()?;
        let packages = base.with_packages("postgres", "postgres/packages.txt", "postgres:999:/var/lib/postgresql")?;
        let start = layer::of_entries(
            "postgres start",
            vec![
                Entry::Content {
                    target: "usr/local/bin/start-postgres",
                    mode: 0o755,
                    body: layer::input("postgres/start-postgres.sh")?,
                },
                Entry::Folder { target: "var/lib/postgresql/data", mode: 0o700, owner: 999 },
            ],
        )?;
        let run = Run {
            entrypoint: vec!["/usr/local/bin/start-postgres"],
            user: "999:999",
            folder: "/",
            env: vec!["PGDATA=/var/lib/postgresql/data/pgdata", "LANG=C.UTF-8"],
            ports: vec![5432],
        };
        Ok((vec![base.layer.clone(), packages, start], run))
    }

    fn oidc(&self) -> Result<(Vec<Layer>, Run)> {
        let node = self.node()?;
        let modules = self.npm("oidc")?;
        let script = |target, file: &str| layer::input(file).map(|body| Entry::Content { target, mode: 0o644, body });
        let server = layer::of_entries(
            "oidc server",
            vec![
                script("app/package.json", "oidc/package.json")?,
                script("app/server.mjs", "oidc/server.mjs")?,
                script("app/clients.json", "oidc/clients.json")?,
                script("app/token.mjs", "oidc/token.mjs")?,
            ],
        )?;
        let run = Run {
            entrypoint: vec!["/usr/local/bin/node", "/app/server.mjs"],
            user: NOBODY,
            folder: "/app",
            env: vec!["NODE_ENV=production"],
            ports: vec![9000],
        };
        Ok((vec![self.base()?.layer.clone(), node.layer()?, modules, server], run))
    }

    fn mcp_server(&self) -> Result<(Vec<Layer>, Run)> {
        let base = self.base()?;
        let packages = base.with_packages("mcp-server", "mcp-server/packages.txt", "nonroot:65532:/tmp")?;
        let (folder, key) = python::packages("mcp-server")?;
        let modules = layer::cached("fastmcp", &key, |tar| {
            layer::tree(tar, &folder, Path::new("opt/fastmcp"), &|path| !path.starts_with("bin"))
        })?;
        let body = layer::input("mcp-server/server.py")?;
        let server =
            layer::of_entries("mcp server", vec![Entry::Content { target: "app/server.py", mode: 0o644, body }])?;
        let run = Run {
            entrypoint: vec!["/usr/bin/python3", "/app/server.py"],
            user: NOBODY,
            folder: "/tmp",
            env: vec!["PYTHONPATH=/opt/fastmcp", "PYTHONDONTWRITEBYTECODE=1", "HOME=/tmp", "LANG=C.UTF-8"],
            ports: vec![8000],
        };
        Ok((vec![base.layer.clone(), packages, modules, server], run))
    }

    /// The `node_modules` of an image below `/app`.
    fn npm(&self, name: &str) -> Result<Layer> {
        let lock = layer::input(&format!("{name}/package-lock.json"))?;
        let folder = self.node()?.packages(name)?;
        layer::cached(&format!("npm {name}"), &layer::key(&[b"app", &lock]), |tar| {
            layer::tree(tar, &folder, Path::new("app"), &|path| path.starts_with("node_modules"))
        })
    }

    /// An agent and the session host. All but the agent's own layers are the same in every such image.
    fn session(&self, name: &str) -> Result<(Vec<Layer>, Run)> {
        let (base, node) = (self.base()?, self.node()?);
        let packages = base.with_packages("session", "session/packages.txt", "agent:10001:/home/agent")?;
        let mut layers = vec![base.layer.clone(), packages, node.layer()?];
        layers.extend(session::layers(name, &node.packages(name)?)?);
        // Last, as the only part that changes with our own code.
        layers.push(layer::of_entries(
            "session host",
            vec![
                Entry::Folder { target: "home/agent", mode: 0o750, owner: AGENT },
                Entry::Folder { target: "workspace", mode: 0o755, owner: AGENT },
                Entry::Folder { target: "state", mode: 0o750, owner: AGENT },
                Entry::Copy {
                    target: "usr/local/bin/agentapi-runtime",
                    mode: 0o755,
                    source: self.binaries()?.path(RUNTIME.0),
                },
            ],
        )?);
        let run = Run {
            entrypoint: vec!["/usr/local/bin/agentapi-runtime", "session"],
            user: "10001:10001",
            folder: "/workspace",
            env: vec!["HOME=/home/agent", "LANG=C.UTF-8"],
            ports: vec![3284],
        };
        Ok((layers, run))
    }

    /// claude-code-router and the guard in front of it.
    fn model_router(&self) -> Result<(Vec<Layer>, Run)> {
        let modules = self.npm("model-router")?;
        let body = layer::input("model-router/vertex-stream.cjs")?;
        let source = self.binaries()?.path(RUNTIME.0);
        let ours = layer::of_entries(
            "model router",
            vec![
                Entry::Content { target: "app/vertex-stream.cjs", mode: 0o644, body },
                Entry::Copy { target: "usr/local/bin/agentapi-runtime", mode: 0o755, source },
            ],
        )?;
        let run = Run {
            entrypoint: vec!["/usr/local/bin/agentapi-runtime", "model-router"],
            user: NOBODY,
            folder: "/tmp",
            env: vec!["HOME=/tmp", "LANG=C.UTF-8"],
            ports: vec![],
        };
        Ok((vec![self.base()?.layer.clone(), self.node()?.layer()?, modules, ours], run))
    }
}

/// `get_or_try_init`, which the standard library does not have yet.
fn made<T>(cell: &OnceCell<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    if let Some(value) = cell.get() {
        return Ok(value);
    }
    let value = make()?;
    Ok(cell.get_or_init(|| value))
}
