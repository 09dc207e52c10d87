//! A bounded mutation fuzzer that runs inside a unit test, on stable Rust: `cargo test` replays all seeds and mutates
//! them for a second, `cargo xtask fuzz` for as long as one likes.
//!
//! A target is a function from bytes to a number that stands for what the parser did with them (how many lines, which
//! error). An input with a new number becomes a seed of the same run: that leads the mutations to new behaviour where
//! libFuzzer would count branches. An input that panics, or takes longer than [`SLOW`] of CPU, fails the test; it is
//! made smaller, printed, and kept as `corpus/<target>/crash-*`, which every later run replays.
//!
//! May touch: its corpus folder, one file per target in the temporary folder, the clock.

mod mutate;

use std::{
    fs::File,
    io::Write as _,
    os::unix::fs::FileExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use mutate::{Mutator, Random};

/// CPU time after which one input counts as slow; inputs are a few KiB and builds are not optimised.
pub const SLOW: Duration = Duration::from_secs(4);
/// Seconds of mutation when [`SECONDS`] is not set.
const DEFAULT_SECONDS: u64 = 1;
/// Environment variable: how long to mutate.
pub const SECONDS: &str = "AGENTAPI_FUZZ_SECONDS";
/// Environment variable: the seed of the randomness, to repeat a run.
pub const SEED: &str = "AGENTAPI_FUZZ_SEED";
/// Inputs that are kept to mutate.
const POOL: usize = 4096;
/// Attempts to make a failing input smaller.
const SHRINKS: usize = 400;

/// A target and how its inputs are made.
#[derive(Debug)]
pub struct Fuzz {
    target: &'static str,
    corpus: PathBuf,
    tokens: &'static [&'static [u8]],
    max_bytes: usize,
}

impl Fuzz {
    /// The target of this name, with its seeds in `corpus/<target>`.
    pub fn new(target: &'static str) -> Self {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
        Self { target, corpus, tokens: &[], max_bytes: 4096 }
    }

    /// Words of the input's language, for mutations to put in.
    #[must_use]
    pub fn tokens(mut self, tokens: &'static [&'static [u8]]) -> Self {
        self.tokens = tokens;
        self
    }

    /// Longest input.
    #[must_use]
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Replays the seeds, then mutates them until the time is over.
    ///
    /// # Panics
    /// When an input makes `check` panic or takes too long.
    pub fn run(self, mut check: impl FnMut(&[u8]) -> u64) {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let seconds = number(SECONDS).unwrap_or(DEFAULT_SECONDS);
        let seed = number(SEED).unwrap_or_else(clock_seed);
        let mut random = Random::new(seed);
        let mutator = Mutator { tokens: self.tokens, max_bytes: self.max_bytes };
        let mut current = Current::open(self.target);
        let mut known = std::collections::HashSet::new();
        let mut pool: Vec<Vec<u8>> = Vec::new();
        for input in self.seeds() {
            let behaviour = self.one(&mut check, &mut current, seed, &input);
            known.insert(behaviour);
            pool.push(input);
        }
        assert!(!pool.is_empty(), "{} holds no seed", self.corpus.display());
        let (began, mut runs) = (Instant::now(), pool.len());
        while began.elapsed() < Duration::from_secs(seconds) {
            let input = mutator.mutate(&pool, &mut random);
            let behaviour = self.one(&mut check, &mut current, seed, &input);
            runs += 1;
            if known.insert(behaviour) {
                if pool.len() >= POOL {
                    let index = random.below(pool.len());
                    pool.swap_remove(index);
                }
                pool.push(input);
            }
        }
        println!("fuzz {}: {runs} inputs, {} behaviours, {seconds} s, seed {seed}", self.target, known.len());
    }

    /// Files in the order of their names, so that a run can be repeated.
    fn seeds(&self) -> Vec<Vec<u8>> {
        let entries = std::fs::read_dir(&self.corpus).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect();
        paths.sort();
        paths.iter().filter_map(|path| std::fs::read(path).ok()).collect()
    }

    fn one(&self, check: &mut impl FnMut(&[u8]) -> u64, current: &mut Current, seed: u64, input: &[u8]) -> u64 {
        current.note(input);
        match attempt(check, input) {
            Ok(behaviour) => behaviour,
            Err(why) => self.report(check, &why, seed, input),
        }
    }

    #[allow(clippy::panic, reason = "this is how a test fails")]
    fn report(&self, check: &mut impl FnMut(&[u8]) -> u64, why: &str, seed: u64, input: &[u8]) -> ! {
        let small = shrink(check, input);
        let digest = small.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let path = self.corpus.join(format!("crash-{digest:016x}"));
        let kept = std::fs::write(&path, &small).map_or_else(|error| error.to_string(), |()| "kept".to_owned());
        panic!(
            "fuzz target {}: {why}\n  {} bytes: {}\n  {kept}: {}\n  seed {seed}\n  cargo xtask fuzz --seconds 0 {} repeats it",
            self.target,
            small.len(),
            small.escape_ascii(),
            path.display(),
            self.target,
        )
    }
}

/// What went wrong, or the behaviour.
fn attempt(check: &mut impl FnMut(&[u8]) -> u64, input: &[u8]) -> Result<u64, String> {
    let (wall, before) = (Instant::now(), cpu());
    let outcome = catch_unwind(AssertUnwindSafe(|| check(input)));
    // Wall time alone says nothing on a busy machine, and asking for CPU time each time would cost more than most targets.
    if wall.elapsed() > SLOW && cpu().saturating_sub(before) > SLOW {
        return Err(format!("took {:?} of CPU", cpu().saturating_sub(before)));
    }
    outcome.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
    })
}

/// CPU time of this thread; zero where the system does not tell.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|nanos| nanos.parse().ok()).map_or(Duration::ZERO, Duration::from_nanos)
}

/// Leaves parts out as long as it still fails.
fn shrink(check: &mut impl FnMut(&[u8]) -> u64, input: &[u8]) -> Vec<u8> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let (began, mut best, mut size, mut tries) = (Instant::now(), input.to_vec(), input.len().div_ceil(2), 0);
    while size > 0 && tries < SHRINKS && began.elapsed() < SLOW * 5 {
        let mut start = 0;
        while start < best.len() && tries < SHRINKS && began.elapsed() < SLOW * 5 {
            let mut smaller = best.clone();
            smaller.drain(start..(start + size).min(best.len()));
            tries += 1;
            if attempt(check, &smaller).is_err() {
                best = smaller;
            } else {
                start += size;
            }
        }
        size /= 2;
    }
    std::panic::set_hook(hook);
    best
}

#[allow(clippy::cast_possible_truncation, reason = "any bits will do")]
fn clock_seed() -> u64 {
    std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_nanos() as u64)
}

/// The input that is being tried, in a file: a stack overflow ends the process without a panic.
struct Current(Option<File>);

impl Current {
    fn open(target: &str) -> Self {
        let folder = std::env::temp_dir().join("agentapi-fuzz");
        let file = std::fs::create_dir_all(&folder).and_then(|()| File::create(folder.join(target)));
        Self(file.ok())
    }

    fn note(&mut self, input: &[u8]) {
        if let Some(file) = &mut self.0 {
            let noted = file.write_all_at(input, 0).and_then(|()| file.set_len(input.len() as u64));
            if noted.and_then(|()| file.flush()).is_err() {
                self.0 = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    fn in_folder(seed: &[u8]) -> (PathBuf, Fuzz) {
        let corpus = std::env::temp_dir().join(format!("agentapi-fuzz-test-{}-{}", std::process::id(), seed.len()));
        std::fs::create_dir_all(&corpus).unwrap();
        std::fs::write(corpus.join("seed"), seed).unwrap();
        (corpus.clone(), Fuzz { target: "self-test", corpus, tokens: &[b"<b>"], max_bytes: 64 })
    }

    #[test]
    fn a_panic_behind_two_conditions_is_found_made_small_and_kept() {
        let (folder, fuzz) = in_folder(b"hello world, this is a seed");
        let failure = catch_unwind(AssertUnwindSafe(|| {
            // Endless: it ends by being found.
            let fuzz = fuzz;
            for _ in 0..120 {
                let again = Fuzz { corpus: fuzz.corpus.clone(), ..Fuzz::new("self-test") };
                again.tokens(&[b"<b>"]).run(|input| {
                    let marks = input.windows(3).filter(|window| window == b"<b>").count() as u64;
                    assert!(marks < 3, "three marks");
                    marks
                });
            }
        }));
        let kept: Vec<_> = std::fs::read_dir(&folder).unwrap().flatten().collect();
        let crash = kept.iter().find(|entry| entry.file_name().to_string_lossy().starts_with("crash-")).unwrap();
        assert_eq!(std::fs::read(crash.path()).unwrap(), b"<b><b><b>");
        let text = failure.unwrap_err().downcast_ref::<String>().unwrap().clone();
        assert!(text.contains("three marks") && text.contains("<b><b><b>"), "{text}");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
