//! Composed texts, kept for as long as nothing that they are made of has another generation. What is not asked for any
//! more goes when the cache is full; nothing goes because of its age alone, and nothing stays that has changed.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::{Arc, PoisonError, RwLock};

use crate::compose::Composed;
use crate::facts::Facts;
use crate::policy::Policy;

/// Which policies, in which generation: what a text was made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Generations(Vec<(u128, i64)>);

impl Generations {
    /// From ids and generations, in any order.
    pub fn new(pairs: impl IntoIterator<Item = (u128, i64)>) -> Self {
        let mut pairs: Vec<_> = pairs.into_iter().collect();
        pairs.sort_unstable();
        Self(pairs)
    }

    /// Of these policies.
    pub fn of(policies: &[Policy]) -> Self {
        Self::new(policies.iter().map(|policy| (policy.id, policy.generation)))
    }
}

impl Hash for Generations {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Ids are random already, and an equal hash of unequal keys costs a miss and nothing else.
        let mixed = self
            .0
            .iter()
            .fold(0_u128, |sum, (id, generation)| sum.rotate_left(7) ^ id ^ u128::from(generation.unsigned_abs()));
        state.write_u128(mixed);
    }
}

struct Kept {
    generations: Generations,
    facts: Facts,
    composed: Arc<Composed>,
}

impl Kept {
    /// Bytes, more or less.
    fn weight(&self) -> usize {
        const EACH: usize = 256;
        const BESIDES: usize = 1024;
        let parts = self.generations.0.len() + self.composed.sections.len() + self.composed.left_out.len();
        self.composed.text.len() + parts * EACH + BESIDES
    }
}

/// The texts of one organization.
#[derive(Default)]
struct Share {
    kept: HashMap<u64, Kept>,
    bytes: usize,
}

/// The cache. An organization's or workspace's name and id are in the key: with the facts, and with the policies.
/// When it is full, the organization that takes most of it begins anew: whoever has many texts composed throws out
/// nobody else's.
pub struct Cache {
    shares: RwLock<HashMap<String, Share>>,
    hasher: RandomState,
    bytes: usize,
}

impl Cache {
    /// Keeps at most so many bytes.
    pub fn new(bytes: usize) -> Self {
        Self { shares: RwLock::default(), hasher: RandomState::new(), bytes }
    }

    /// The text of exactly these generations for exactly these facts.
    pub fn get(&self, generations: &Generations, facts: &Facts) -> Option<Arc<Composed>> {
        let shares = self.shares.read().unwrap_or_else(PoisonError::into_inner);
        let found = shares.get(facts.organization())?.kept.get(&self.key(generations, facts))?;
        (found.generations == *generations && found.facts == *facts).then(|| Arc::clone(&found.composed))
    }

    /// Keeps a text.
    pub fn put(&self, generations: Generations, facts: Facts, composed: Arc<Composed>) {
        let key = self.key(&generations, &facts);
        let kept = Kept { generations, facts, composed };
        let weight = kept.weight();
        if weight > self.bytes {
            return;
        }
        let mut shares = self.shares.write().unwrap_or_else(PoisonError::into_inner);
        // What is in use comes back with the next session; bookkeeping per look-up would cost more.
        while shares.values().map(|share| share.bytes).sum::<usize>() + weight > self.bytes {
            let largest = shares.iter().max_by_key(|(_, share)| share.bytes).map(|(name, _)| name.clone());
            if largest.and_then(|name| shares.remove(&name)).is_none() {
                break;
            }
        }
        let share = shares.entry(kept.facts.organization().to_owned()).or_default();
        share.bytes += weight;
        if let Some(before) = share.kept.insert(key, kept) {
            share.bytes -= before.weight();
        }
    }

    fn key(&self, generations: &Generations, facts: &Facts) -> u64 {
        self.hasher.hash_one((generations, facts))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn composed(text: &str) -> Arc<Composed> {
        Arc::new(Composed { text: text.to_owned(), ..Composed::default() })
    }

    fn facts(user: &str, date: &str) -> Facts {
        Facts::new("acme", "web", user, "claude", date, ["github"])
    }

    #[test]
    fn another_generation_user_or_day_is_another_text() {
        let cache = Cache::new(1 << 20);
        let generations = Generations::new([(2, 1), (1, 4)]);
        cache.put(generations.clone(), facts("alice", "2026-11-26"), composed("old"));
        let get = |generations: &Generations, facts: &Facts| cache.get(generations, facts).map(|it| it.text.clone());
        let today = facts("alice", "2026-11-26");
        assert_eq!(get(&Generations::new([(1, 4), (2, 1)]), &today).as_deref(), Some("old"));
        for other in [vec![(1, 5), (2, 1)], vec![(1, 4)], vec![(1, 4), (2, 1), (3, 1)], vec![], vec![(1, 1), (2, 4)]] {
            assert_eq!(get(&Generations::new(other), &today), None);
        }
        assert_eq!(get(&generations, &facts("bob", "2026-11-26")), None);
        assert_eq!(get(&generations, &facts("alice", "2026-11-27")), None);
    }

    #[test]
    fn whoever_floods_it_throws_out_nobody_else_and_it_stays_small() {
        const BYTES: usize = 256 * 1024;
        let cache = Cache::new(BYTES);
        let acme = |user: u32| Facts::new("acme", "web", &user.to_string(), "claude", "d", ["github"]);
        for user in 0..10 {
            cache.put(Generations::default(), acme(user), composed("x"));
        }
        for user in 0..5000 {
            let facts = Facts::new("globex", "web", &user.to_string(), "claude", "d", ["github"]);
            cache.put(Generations::default(), facts.clone(), composed(&"y".repeat(2048)));
            assert!(cache.get(&Generations::default(), &facts).is_some());
            let shares = cache.shares.read().unwrap();
            assert!(shares.values().map(|share| share.bytes).sum::<usize>() <= BYTES);
            let counted = |share: &Share| share.kept.values().map(Kept::weight).sum::<usize>();
            assert!(shares.values().all(|share| share.bytes == counted(share)));
        }
        for user in 0..10 {
            assert!(cache.get(&Generations::default(), &acme(user)).is_some(), "{user}");
        }
        // The same again takes its own place, and what is larger than all of it takes none.
        cache.put(Generations::default(), acme(0), composed("z"));
        assert_eq!(cache.get(&Generations::default(), &acme(0)).map(|it| it.text.clone()).as_deref(), Some("z"));
        cache.put(Generations::default(), acme(99), composed(&"y".repeat(BYTES)));
        assert!(cache.get(&Generations::default(), &acme(99)).is_none());
        assert!(cache.get(&Generations::default(), &acme(1)).is_some());
    }
}
