//! A circuit breaker. Closed, it counts failures in a row and opens at a threshold; open, it refuses until its time is
//! over; half-open, it lets one call at a time try, closes after so many successes in a row, and opens again at the
//! first failure. Time is passed in, so that callers and tests decide about it. May touch: its own memory.
//!
//! All state but the end of the open time is one atomic word, changed by compare-and-swap:
//!
//! | bits | 63..32 | 31..30 | 29 | 28..0 |
//! |---|---|---|---|---|
//! | | epoch | state | a call is trying | failures or successes in a row |
//!
//! The epoch counts changes of state. A call remembers the epoch in which it was admitted, and its outcome counts only
//! in that one: an answer that comes after the breaker has opened says nothing about the server now.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// When a breaker opens and closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Failures in a row that open it.
    pub failures: u32,
    /// Successes in a row that close it.
    pub successes: u32,
    /// How long it stays open.
    pub open: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { failures: 5, successes: 2, open: Duration::from_secs(30) }
    }
}

/// What a breaker is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Calls go through.
    Closed,
    /// None does.
    Open,
    /// One at a time does.
    HalfOpen,
}

impl State {
    /// For people and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        }
    }
}

/// A call is not let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the circuit breaker is open; try again in {} s", retry_after.as_secs_f64().ceil())]
pub struct Rejected {
    /// When the next one may be.
    pub retry_after: Duration,
}

/// The word, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Word {
    epoch: u32,
    state: State,
    trying: bool,
    count: u32,
}

const TRYING: u64 = 1 << 29;
const COUNT: u64 = TRYING - 1;

impl Word {
    fn of(bits: u64) -> Self {
        let state = match bits >> 30 & 3 {
            0 => State::Closed,
            1 => State::Open,
            _ => State::HalfOpen,
        };
        // The low 29 and the high 32 bits both fit.
        #[allow(clippy::cast_possible_truncation)]
        Self { epoch: (bits >> 32) as u32, state, trying: bits & TRYING != 0, count: (bits & COUNT) as u32 }
    }

    fn bits(self) -> u64 {
        let state = match self.state {
            State::Closed => 0,
            State::Open => 1,
            State::HalfOpen => 2,
        };
        let trying = if self.trying { TRYING } else { 0 };
        u64::from(self.epoch) << 32 | state << 30 | trying | u64::from(self.count) & COUNT
    }

    fn into_state(self, state: State) -> Self {
        Self { epoch: self.epoch.wrapping_add(1), state, trying: false, count: 0 }
    }
}

/// The breaker.
#[derive(Debug)]
pub struct Breaker {
    settings: Settings,
    word: AtomicU64,
    /// End of the open time, in nanoseconds of the callers' clock. Written before the state becomes Open.
    until: AtomicU64,
}

/// A call that was let through. Without an outcome (it was cancelled) it counts as neither.
#[derive(Debug)]
#[must_use]
pub struct Permit {
    breaker: Arc<Breaker>,
    epoch: u32,
    tries: bool,
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Breaker {
    /// Closed.
    pub fn new(settings: Settings) -> Self {
        Self { settings, word: AtomicU64::new(0), until: AtomicU64::new(0) }
    }

    /// What it was made with.
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// What it is doing.
    pub fn state(&self) -> State {
        Word::of(self.word.load(Ordering::Acquire)).state
    }

    /// Lets a call through, or not. `now` is the time since any fixed moment.
    pub fn admit(self: &Arc<Self>, now: Duration) -> Result<Permit, Rejected> {
        let now = nanos(now);
        loop {
            let bits = self.word.load(Ordering::Acquire);
            let word = Word::of(bits);
            let next = match word.state {
                State::Closed => return Ok(Permit { breaker: Arc::clone(self), epoch: word.epoch, tries: false }),
                State::Open => {
                    let left = self.until.load(Ordering::Acquire).saturating_sub(now);
                    if left > 0 {
                        return Err(Rejected { retry_after: Duration::from_nanos(left) });
                    }
                    Word { trying: true, ..word.into_state(State::HalfOpen) }
                }
                // Whoever tries is back soon; nobody knows when.
                State::HalfOpen if word.trying => return Err(Rejected { retry_after: Duration::from_secs(1) }),
                State::HalfOpen => Word { trying: true, ..word },
            };
            if self.swap(bits, next) {
                return Ok(Permit { breaker: Arc::clone(self), epoch: next.epoch, tries: true });
            }
        }
    }

    fn swap(&self, from: u64, to: Word) -> bool {
        self.word.compare_exchange(from, to.bits(), Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Changes the word by `step`, as long as it is still in this epoch.
    fn update(&self, epoch: u32, step: impl Fn(Word) -> Option<Word>) {
        loop {
            let bits = self.word.load(Ordering::Acquire);
            let word = Word::of(bits);
            if word.epoch != epoch {
                return;
            }
            match step(word) {
                Some(next) if next != word && !self.swap(bits, next) => {}
                _ => return,
            }
        }
    }
}

impl Permit {
    /// The server did what it should.
    pub fn succeeded(mut self) {
        let (settings, tries) = (self.breaker.settings, std::mem::take(&mut self.tries));
        self.breaker.update(self.epoch, |word| {
            Some(match word.state {
                State::HalfOpen if tries && word.count + 1 >= settings.successes => word.into_state(State::Closed),
                State::HalfOpen if tries => Word { trying: false, count: word.count + 1, ..word },
                State::Closed => Word { count: 0, ..word },
                _ => return None,
            })
        });
    }

    /// It did not.
    pub fn failed(mut self, now: Duration) {
        let (settings, tries) = (self.breaker.settings, std::mem::take(&mut self.tries));
        let until = nanos(now).saturating_add(nanos(settings.open));
        self.breaker.update(self.epoch, |word| {
            let opens = match word.state {
                State::Closed => word.count + 1 >= settings.failures,
                State::HalfOpen => tries,
                State::Open => return None,
            };
            if opens {
                self.breaker.until.store(until, Ordering::Release);
                return Some(word.into_state(State::Open));
            }
            Some(Word { count: word.count + 1, ..word })
        });
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.tries {
            self.breaker
                .update(self.epoch, |word| (word.state == State::HalfOpen).then_some(Word { trying: false, ..word }));
        }
    }
}

#[cfg(test)]
#[path = "breaker_tests.rs"]
mod tests;
