//! The beat of what is looked at again and again. Touches nothing.
use std::time::Duration;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// The first tick is at once. After a round that took longer than the period the next one is at once too, but those that
/// were missed are not made up for.
pub fn every(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
