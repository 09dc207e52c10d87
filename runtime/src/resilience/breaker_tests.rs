//! The breaker against a model that is as simple as the words that describe it.
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const OPEN: Duration = Duration::from_secs(30);

/// The description, without atomics: what was let through carries the number of the phase it belongs to.
struct Model {
    settings: Settings,
    phase: u32,
    state: State,
    trying: bool,
    count: u32,
    until: Duration,
}

impl Model {
    fn enter(&mut self, state: State) {
        (self.state, self.phase, self.trying, self.count) = (state, self.phase + 1, false, 0);
    }

    fn admit(&mut self, now: Duration) -> Option<u32> {
        if self.state == State::Open && now >= self.until {
            self.enter(State::HalfOpen);
        }
        match self.state {
            State::Closed => Some(self.phase),
            State::HalfOpen if !self.trying => {
                self.trying = true;
                Some(self.phase)
            }
            _ => None,
        }
    }

    fn end(&mut self, phase: u32, outcome: Outcome, now: Duration) {
        if phase != self.phase {
            return;
        }
        self.trying = false;
        match (self.state, outcome) {
            (State::Closed, Outcome::Success) => self.count = 0,
            (State::Closed, Outcome::Failure) => {
                self.count += 1;
                if self.count >= self.settings.failures {
                    self.enter(State::Open);
                    self.until = now + self.settings.open;
                }
            }
            (State::HalfOpen, Outcome::Success) => {
                self.count += 1;
                if self.count >= self.settings.successes {
                    self.enter(State::Closed);
                }
            }
            (State::HalfOpen, Outcome::Failure) => {
                self.enter(State::Open);
                self.until = now + self.settings.open;
            }
            (State::Open, _) | (_, Outcome::Dropped) => {}
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Outcome {
    Success,
    Failure,
    Dropped,
}

#[derive(Debug, Clone)]
enum Step {
    Admit,
    /// The call that was let through so many calls ago ends.
    End(usize, Outcome),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let outcome = prop_oneof![2 => Just(Outcome::Success), 5 => Just(Outcome::Failure), 1 => Just(Outcome::Dropped)];
    prop_oneof![
        5 => Just(Step::Admit),
        5 => (0_usize..4, outcome).prop_map(|(which, outcome)| Step::End(which, outcome)),
        1 => (0_u64..40_000).prop_map(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn it_does_what_the_description_says(
        failures in 1_u32..7, successes in 1_u32..4, steps in prop::collection::vec(step(), 1..120),
    ) {
        let settings = Settings { failures, successes, open: OPEN };
        let breaker = Arc::new(Breaker::new(settings));
        let mut model =
            Model { settings, phase: 0, state: State::Closed, trying: false, count: 0, until: Duration::ZERO };
        let (mut now, mut calls) = (Duration::ZERO, VecDeque::new());
        for step in steps {
            match step {
                Step::Admit => match (breaker.admit(now), model.admit(now)) {
                    (Ok(permit), Some(phase)) => calls.push_front((permit, phase)),
                    (Err(rejected), None) => prop_assert!(rejected.retry_after <= OPEN),
                    (permit, phase) => prop_assert!(false, "{permit:?} but the model says {phase:?}"),
                },
                Step::End(which, outcome) => {
                    let Some((permit, phase)) = calls.remove(which) else { continue };
                    model.end(phase, outcome, now);
                    match outcome {
                        Outcome::Success => permit.succeeded(),
                        Outcome::Failure => permit.failed(now),
                        Outcome::Dropped => drop(permit),
                    }
                }
                Step::Wait(millis) => now += Duration::from_millis(millis),
            }
            prop_assert_eq!(breaker.state(), model.state);
        }
    }

    #[test]
    fn a_word_comes_back_as_it_was(epoch: u32, state in 0_u64..3, trying: bool, count in 0_u32..1 << 20) {
        let word = Word { trying, count, ..Word::of(u64::from(epoch) << 32 | state << 30) };
        prop_assert_eq!(Word::of(word.bits()), word);
    }
}

#[test]
fn five_failures_open_it_for_thirty_seconds_and_two_successes_close_it() {
    let breaker = Arc::new(Breaker::new(Settings::default()));
    let at = Duration::from_secs;
    for _ in 0..5 {
        assert_eq!(breaker.state(), State::Closed);
        breaker.admit(at(1)).unwrap().failed(at(1));
    }
    assert_eq!(breaker.state(), State::Open);
    assert_eq!(breaker.admit(at(21)).unwrap_err().retry_after, at(10));
    let first = breaker.admit(at(31)).unwrap();
    assert!(breaker.admit(at(31)).is_err(), "one at a time");
    first.succeeded();
    assert_eq!(breaker.state(), State::HalfOpen);
    breaker.admit(at(32)).unwrap().succeeded();
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn a_late_answer_says_nothing() {
    let breaker = Arc::new(Breaker::new(Settings { failures: 1, ..Settings::default() }));
    let (slow, at) = (breaker.admit(Duration::ZERO).unwrap(), Duration::from_secs);
    breaker.admit(at(1)).unwrap().failed(at(1));
    let trying = breaker.admit(at(40)).unwrap();
    slow.failed(at(41));
    assert_eq!(breaker.state(), State::HalfOpen);
    trying.succeeded();
    breaker.admit(at(42)).unwrap().succeeded();
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn threads_agree_on_who_tries() {
    let breaker = Arc::new(Breaker::new(Settings { failures: 1, ..Settings::default() }));
    breaker.admit(Duration::ZERO).unwrap().failed(Duration::ZERO);
    let let_through = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                if let Ok(permit) = breaker.admit(OPEN) {
                    let_through.fetch_add(1, Ordering::Relaxed);
                    // Kept until all have asked.
                    std::mem::forget(permit);
                }
            });
        }
    });
    assert_eq!(let_through.into_inner(), 1);
}
