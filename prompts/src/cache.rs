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

/// The cache. An organization's or workspace's name and id are in the key: with the facts, and with the policies.
pub struct Cache {
    kept: RwLock<HashMap<u64, Kept>>,
    hasher: RandomState,
    capacity: usize,
}

impl Cache {
    /// Keeps at most so many texts.
    pub fn new(capacity: usize) -> Self {
        Self { kept: RwLock::default(), hasher: RandomState::new(), capacity: capacity.max(1) }
    }

    /// The text of exactly these generations for exactly these facts.
    pub fn get(&self, generations: &Generations, facts: &Facts) -> Option<Arc<Composed>> {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        let found = kept.get(&self.key(generations, facts))?;
        (found.generations == *generations && found.facts == *facts).then(|| Arc::clone(&found.composed))
    }

    /// Keeps a text.
    pub fn put(&self, generations: Generations, facts: Facts, composed: Arc<Composed>) {
        let key = self.key(&generations, &facts);
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= self.capacity && !kept.contains_key(&key) {
            // What is in use comes back with the next session; bookkeeping per look-up would cost more.
            kept.clear();
        }
        kept.insert(key, Kept { generations, facts, composed });
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
        let cache = Cache::new(10);
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
    fn it_stays_small() {
        let cache = Cache::new(3);
        for user in 0..100 {
            cache.put(Generations::default(), facts(&user.to_string(), "d"), composed("x"));
            assert!(cache.kept.read().unwrap().len() <= 3);
            assert!(cache.get(&Generations::default(), &facts(&user.to_string(), "d")).is_some());
        }
    }
}
