//! `cargo xtask test`: everything that a change has to pass, in the order in which it fails fastest.

use std::{path::PathBuf, process::Command, time::Instant};

use anyhow::{Context, Result, bail};

use crate::{cluster, debian, gobuild, images, paths, sh, up};

/// The client of coder/agentapi that the conformance test drives, from PyPI.
const CYBERIAN: &str = "cyberian==0.2.2";

/// How long each fuzz target runs in `cargo xtask test`.
const FUZZ_SECONDS: &str = "5";

/// Of all random inputs in `cargo xtask test`: a change is judged by itself, not by an old bug that its run happened to
/// draw. `cargo xtask fuzz` and plain `cargo test` draw new ones.
const SEED: &str = "20261127";

/// Arguments of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run only this part.
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// Which Kubernetes to use.
    #[arg(long, value_enum, default_value_t)]
    cluster: cluster::Flavor,
    /// Cargo profile of the binaries in the images, as in `cargo xtask up`.
    #[arg(long)]
    profile: Option<String>,
}

/// A part of the tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Formatting, clippy, generated files, charts.
    Lint,
    /// Unit, property, snapshot, database and API tests; no cluster.
    Fast,
    /// Tests on the cluster, which is made if it is not there.
    Cluster,
}

/// Runs the parts; the first that fails ends the run, when all of its tests have run.
pub(crate) fn main(args: &Args) -> Result<()> {
    let wanted = |part| args.only.is_none_or(|only| only == part);
    if wanted(Part::Fast) {
        debian::ensure(&[
            ("/usr/lib/postgresql/15/bin/postgres", "postgresql-15"),
            ("chromium", "chromium"),
            // FastMCP, which the tests of MCP install for themselves.
            ("/usr/bin/python3", "python3-venv"),
        ])?;
    }
    if wanted(Part::Lint) {
        lint()?;
    }
    if wanted(Part::Fast) {
        // The tests of consents run the real provider, those of agents the real agents.
        let (node, oidc) = images::node_with("oidc")?;
        let mut env = vec![("NODE".to_owned(), node), ("OIDC_MODULES".to_owned(), oidc)];
        for image in images::sessions().into_iter().chain(["model-router".to_owned()]) {
            let (_, modules) = images::node_with(&image)?;
            env.push((format!("{}_MODULES", image.to_uppercase().replace('-', "_")), modules));
        }
        let more = [
            ("HELM", cluster::helm()?),
            ("PROMTOOL", debian::unpacked("promtool", "prometheus")?),
            ("AGENTAPI_FUZZ_SECONDS", PathBuf::from(FUZZ_SECONDS)),
            ("AGENTAPI_FUZZ_SEED", PathBuf::from(SEED)),
            ("PROPTEST_RNG_SEED", PathBuf::from(SEED)),
        ];
        env.extend(more.map(|(name, value)| (name.to_owned(), value)));
        let env: Vec<(&str, PathBuf)> = env.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        cargo(
            "unit, property, database and API tests",
            &["test", "--workspace", "--all-targets", "--no-fail-fast"],
            &env,
        )?;
    }
    if wanted(Part::Cluster) {
        up::main(&up::Args::new(args.cluster, args.profile.clone()).with_all_agents())?;
        section("tests of the enforcer of network policies", gobuild::test)?;
        let client = conformance_client()?;
        let names = cluster_tests()?;
        let mut words = vec!["test", "--workspace", "--features", "agentapi-tests/cluster", "--no-fail-fast"];
        for name in &names {
            words.extend(["--test", name]);
        }
        let env = [("CYBERIAN", client), ("KUBECONFIG", paths::kubeconfig()?)];
        cargo("tests on the cluster", &[&words[..], &["--", "--test-threads=1"]].concat(), &env)?;
    }
    Ok(())
}

fn lint() -> Result<()> {
    cargo("rustfmt", &["fmt", "--all", "--check"], &[])?;
    let clippy =
        ["clippy", "--workspace", "--all-targets", "--features", "agentapi-tests/cluster", "--", "-D", "warnings"];
    cargo("clippy", &clippy, &[])?;
    cargo("generated CRDs are current", &["run", "-p", "agentapi-crds", "--bin", "crdgen", "--", "--check"], &[])?;
    let helm = cluster::helm()?;
    for chart in ["agentapi", "agentapi-crds"] {
        section(&format!("helm lint {chart}"), || {
            let chart = paths::repo().join("charts").join(chart);
            sh::output(Command::new(&helm).args(["lint", "--quiet"]).arg(chart)).map(drop)
        })?;
    }
    Ok(())
}

/// Test files that use the cluster carry the feature gate in their first lines; the name of the file is the test's name.
fn cluster_tests() -> Result<Vec<String>> {
    let dir = paths::repo().join("tests/tests");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "rs")
            && std::fs::read_to_string(&path)?.contains("#![cfg(feature = \"cluster\")]")
        {
            names.push(path.file_stem().unwrap_or_default().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn conformance_client() -> Result<PathBuf> {
    let dir = paths::cache()?.join("cyberian");
    let program = dir.join("bin/cyberian");
    if !program.exists() {
        section(&format!("pip install {CYBERIAN}"), || {
            debian::ensure(&[("/usr/bin/python3", "python3-venv")])?;
            let log = paths::logs()?.join("cyberian.log");
            sh::logged(Command::new("python3").args(["-m", "venv"]).arg(&dir), &log)?;
            sh::logged(Command::new(dir.join("bin/pip")).args(["install", "--quiet", CYBERIAN]), &log)
        })?;
    }
    Ok(program)
}

fn cargo(name: &str, args: &[&str], env: &[(&str, PathBuf)]) -> Result<()> {
    section(name, || {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(paths::repo()).args(args).envs(env.iter().map(|(k, v)| (k, v)));
        let status = command.status().context("cannot start cargo")?;
        if !status.success() {
            bail!("`cargo {}` failed ({status})", args.join(" "));
        }
        Ok(())
    })
}

fn section(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("\n== {name}");
    let start = Instant::now();
    work().with_context(|| name.to_owned())?;
    println!("== {name}: passed ({:.0} s)", start.elapsed().as_secs_f64());
    Ok(())
}

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    what: Bench,
}

#[derive(clap::Subcommand)]
enum Bench {
    /// Session create to agent ready, on warm and on cold pods of the running cluster.
    Session {
        /// Sessions of each kind.
        #[arg(long, default_value_t = 30)]
        runs: usize,
    },
    /// From a message for a suspended session to an agent that has it, on the running cluster; half a minute each.
    Wake {
        /// How often.
        #[arg(long, default_value_t = 10)]
        runs: usize,
    },
    /// What one organization's flood does to another's latency: real Postgres, two replicas, no cluster; about a minute.
    Fairness {
        /// Fail when the flood changes the other's p99 by more than this factor.
        #[arg(long)]
        max_ratio: Option<f64>,
    },
    /// How long connecting takes, what the MCP gateway adds to a call, and what a session costs: real FastMCP,
    /// oidc-provider and Postgres, no cluster; a minute.
    Mcp,
}

/// Runs a benchmark: of sessions against the cluster of `cargo xtask up`, of fairness without one.
pub(crate) fn bench(args: &BenchArgs) -> Result<()> {
    match args.what {
        Bench::Session { runs } => {
            let runs = runs.to_string();
            let words = ["run", "--quiet", "-p", "agentapi-tests", "--bin", "session-bench", "--", "--runs", &runs];
            cargo("session create to agent ready", &words, &[("KUBECONFIG", paths::kubeconfig()?)])
        }
        Bench::Wake { runs } => {
            let runs = runs.to_string();
            let words =
                ["run", "--quiet", "-p", "agentapi-tests", "--bin", "session-bench", "--", "--wake", "--runs", &runs];
            cargo("a message to a suspended session", &words, &[("KUBECONFIG", paths::kubeconfig()?)])
        }
        Bench::Fairness { max_ratio } => {
            let mut words = vec!["bench", "-p", "agentapi-tests", "--bench", "fairness", "--"];
            let ratio = max_ratio.map(|ratio| ratio.to_string());
            if let Some(ratio) = &ratio {
                words.extend(["--max-ratio", ratio]);
            }
            cargo("one organization's flood beside another", &words, &[])
        }
        Bench::Mcp => {
            let words = ["run", "--quiet", "--release", "-p", "agentapi-tests", "--bin", "mcp-bench"];
            let (node, oidc) = images::node_with("oidc")?;
            cargo("MCP through the gateway and without it", &words, &[("NODE", node), ("OIDC_MODULES", oidc)])
        }
    }
}

/// Arguments of `cargo xtask chaos`.
#[derive(clap::Args)]
pub(crate) struct ChaosArgs {
    /// How often each part is killed.
    #[arg(long, default_value_t = 1)]
    rounds: usize,
}

/// Runs the chaos suite against the cluster of `cargo xtask up`.
pub(crate) fn chaos(args: &ChaosArgs) -> Result<()> {
    let rounds = args.rounds.to_string();
    let words = ["run", "--quiet", "-p", "agentapi-tests", "--bin", "chaos", "--", "--rounds", &rounds];
    let env = [("KUBECONFIG", paths::kubeconfig()?), ("AGENTAPI_XTASK", std::env::current_exe()?)];
    cargo("kill -9 of every part", &words, &env)
}

/// Arguments of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub(crate) struct FuzzArgs {
    /// Seconds of each target.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Only targets with this in their names, such as terminal.
    target: Option<String>,
}

/// Runs the fuzz targets, which are unit tests in modules called `fuzz`.
pub(crate) fn fuzz(args: &FuzzArgs) -> Result<()> {
    let filter = args.target.as_deref().map_or_else(|| "fuzz::".to_owned(), |target| format!("fuzz::{target}"));
    let words = ["test", "--workspace", "--features", "agentapi-tests/cluster", "--lib", "--", "--nocapture", &filter];
    let seconds = PathBuf::from(args.seconds.to_string());
    cargo(&format!("fuzz targets, {} s each", args.seconds), &words, &[("AGENTAPI_FUZZ_SECONDS", seconds)])
}

/// Writes the generated files again.
pub(crate) fn generate() -> Result<()> {
    cargo("CRDs from crds/src", &["run", "-p", "agentapi-crds", "--bin", "crdgen"], &[])
}
