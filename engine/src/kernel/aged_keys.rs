//! Admin keys: remembered for a stated time, and forgotten in the order they came.

use std::collections::VecDeque;

use hashbrown::HashMap;

use crate::units::{KeyHash, NodeTime};

/// How long an admin key is remembered: 90 days of node time.
///
/// A constant, not a setting: replay must forget the same keys as the live path did.
pub const ADMIN_KEY_RETENTION_MS: u64 = 90 * 24 * 3600 * 1000;

/// Keys with what they stand for. Old ones go when a new one comes, so forgetting is an effect of
/// records alone.
pub(super) struct AgedKeys<E> {
    entries: HashMap<KeyHash, (NodeTime, E), foldhash::fast::FixedState>,
    order: VecDeque<KeyHash>,
}

impl<E> Default for AgedKeys<E> {
    fn default() -> Self {
        Self { entries: HashMap::default(), order: VecDeque::new() }
    }
}

impl<E> AgedKeys<E> {
    pub fn get(&self, key: KeyHash) -> Option<&E> {
        self.entries.get(&key).map(|(_, entry)| entry)
    }
    /// Adds a key, and forgets those that are too old beside it.
    pub fn remember(&mut self, key: KeyHash, at: NodeTime, entry: E) {
        while let Some(oldest) = self.order.front() {
            let of_oldest = self.entries.get(oldest).map_or(NodeTime::new(0), |(at, _)| *at);
            if of_oldest.plus_ms(ADMIN_KEY_RETENTION_MS) > at {
                break;
            }
            self.entries.remove(oldest);
            self.order.pop_front();
        }
        self.restore(key, at, entry);
    }
    /// Adds a key as a snapshot has it.
    pub fn restore(&mut self, key: KeyHash, at: NodeTime, entry: E) {
        if self.entries.insert(key, (at, entry)).is_none() {
            self.order.push_back(key);
        }
    }
    pub fn len(&self) -> usize {
        self.order.len()
    }
    /// Oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (KeyHash, NodeTime, &E)> {
        self.order.iter().map(|key| {
            let (at, entry) = self.entries.get(key).expect("every key in the order has its entry");
            (*key, *at, entry)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_remembered_for_its_time_and_forgotten_with_the_next() {
        let mut keys = AgedKeys::default();
        let at = |ms| NodeTime::new(1000 + ms);
        keys.remember(KeyHash::new(1), at(0), 'a');
        keys.remember(KeyHash::new(2), at(ADMIN_KEY_RETENTION_MS - 1), 'b');
        assert_eq!(keys.get(KeyHash::new(1)), Some(&'a'));
        keys.remember(KeyHash::new(3), at(ADMIN_KEY_RETENTION_MS), 'c');
        assert_eq!(keys.get(KeyHash::new(1)), None);
        assert_eq!(keys.iter().map(|(_, _, &e)| e).collect::<String>(), "bc");
    }
}
