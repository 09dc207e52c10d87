//! `cargo xtask images`: builds the images of the project as tars that containerd and Docker load.
//!
//! No registry of images and no container engine takes part: a Debian root file system, Node from a Python wheel, npm
//! packages by lock file, and our own static binaries become layers. A layer is kept under the digest of everything
//! that went into it, so a second run only compiles and packs what changed. Writes only below the cache folder.

mod archive;
mod binaries;
mod catalog;
mod debian;
mod layer;
mod node;
mod python;
mod session;

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::{cache, paths, progress};

use archive::Image;
pub(crate) use layer::lock;

/// Arguments of `cargo xtask images`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Build only this image; may be given several times. Without it, all that `cargo xtask up` needs; session images of
    /// agents other than Claude Code are built only when named.
    #[arg(long, value_name = "NAME", value_parser = known)]
    only: Vec<String>,
    /// Folder for the tars; by default one in the cache folder.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Cargo profile of the binaries; `dev` builds faster and runs slower.
    #[arg(long, default_value = "release")]
    profile: String,
}

/// An image on disk.
pub(crate) struct Built {
    /// Its short name, as `--only` takes it.
    pub(crate) name: String,
    /// Its full name, as a pod spec has it.
    pub(crate) reference: String,
    /// The tar.
    pub(crate) archive: PathBuf,
    /// Digest of its configuration: the same if and only if the image is the same.
    pub(crate) digest: String,
}

/// Runs the command.
pub(crate) fn main(args: &Args) -> Result<()> {
    let built = match &args.out {
        Some(out) => build_in(&paths::ensure(out.clone())?, &args.only, &args.profile)?,
        None => build(&args.only, &args.profile)?,
    };
    for image in built {
        println!("{}\t{}\t{}\t{}", image.name, image.reference, image.digest, image.archive.display());
    }
    Ok(())
}

/// Node.js, and the folder that holds the `node_modules` of an image, for tests that run it without a container.
pub(crate) fn node_with(name: &str) -> Result<(PathBuf, PathBuf)> {
    let node = node::node()?;
    Ok((node.program(), node.packages(name)?))
}

/// An image's name as an argument.
pub(crate) fn known(name: &str) -> Result<String, String> {
    let names = catalog::names();
    if names.iter().any(|known| known == name) { Ok(name.to_owned()) } else { Err(format!("use {}", names.join(", "))) }
}

/// The session images that are built only when they are named.
pub(crate) fn other_sessions() -> Vec<String> {
    catalog::names().split_off(catalog::NAMES.len())
}

/// The images of [`build`] without names.
pub(crate) fn usual() -> Vec<String> {
    catalog::NAMES.map(str::to_owned).to_vec()
}

/// All agents that have an image, by the name of that image.
pub(crate) fn sessions() -> Vec<String> {
    session::names()
}

/// Builds the named images, or those that `cargo xtask up` needs, into the cache folder.
pub(crate) fn build(only: &[String], profile: &str) -> Result<Vec<Built>> {
    build_in(&default_out()?, only, profile)
}

fn default_out() -> Result<PathBuf> {
    paths::ensure(paths::cache()?.join("images"))
}

fn build_in(out: &std::path::Path, only: &[String], profile: &str) -> Result<Vec<Built>> {
    let names = if only.is_empty() { usual() } else { only.to_vec() };
    let images = catalog::images(&names, profile)?;
    images.iter().map(|image| progress::step(&format!("image {}", image.name), || write(out, image))).collect()
}

/// Packs the image unless the tar that is there already holds it.
fn write(out: &std::path::Path, image: &Image) -> Result<Built> {
    let digest = image.digest()?;
    let archive = out.join(format!("{}.tar", image.name));
    let stamp = out.join(format!("{}.digest", image.name));
    let _lock = layer::lock()?;
    let current = archive.exists() && std::fs::read_to_string(&stamp).is_ok_and(|old| old == digest);
    if !current {
        image.write(&archive)?;
        std::fs::write(&stamp, &digest).with_context(|| format!("cannot write {}", stamp.display()))?;
    }
    cache::used(&archive);
    Ok(Built { name: image.name.clone(), reference: image.reference(), archive, digest })
}
