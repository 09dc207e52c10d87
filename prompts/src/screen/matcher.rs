//! Finds the rules' matches: the words first, with one automaton for all families, then each family's rules in the
//! windows around its words. Windows that meet become one, so no byte is looked at twice by a family. Pure.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use regex_automata::Input;
use regex_automata::meta::Regex;
use regex_automata::util::syntax;

use super::Family;
use super::rules::{self, Rules};

struct Matcher {
    words: AhoCorasick,
    /// Bit set of the families that each word belongs to, as places in `families`.
    belongs: Vec<u32>,
    families: Vec<(&'static Rules, Regex)>,
}

/// There is always one: the rules are constants, and a test builds them.
static MATCHER: LazyLock<Option<Matcher>> = LazyLock::new(|| build().ok());

fn build() -> Result<Matcher, Box<dyn std::error::Error + Send + Sync>> {
    let mut belongs: BTreeMap<String, u32> = BTreeMap::new();
    let mut families = Vec::new();
    for (place, rules) in rules::ALL.iter().enumerate() {
        for word in rules.words.split(',') {
            let forms = match word.strip_suffix('~') {
                Some(name) => rules::ASSIGNS.map(|sign| format!("{name}{sign}")).to_vec(),
                None => vec![word.to_owned()],
            };
            for form in forms {
                *belongs.entry(form).or_default() |= 1 << place;
            }
        }
        let patterns: Vec<String> = rules.patterns.iter().map(|pattern| rules::expand(pattern)).collect();
        families.push((rules, regex(&patterns)?));
    }
    let (words, belongs): (Vec<String>, Vec<u32>) = belongs.into_iter().unzip();
    let words = AhoCorasick::builder()
        .ascii_case_insensitive(true)
        .match_kind(MatchKind::Standard)
        .kind(Some(AhoCorasickKind::DFA))
        .build(&words)?;
    Ok(Matcher { words, belongs, families })
}

fn regex(patterns: &[String]) -> Result<Regex, Box<dyn std::error::Error + Send + Sync>> {
    Ok(Regex::builder()
        // ASCII is all there is after folding.
        .syntax(syntax::Config::new().unicode(false).utf8(false).case_insensitive(true))
        .configure(Regex::config().utf8_empty(false).hybrid_cache_capacity(8 << 20))
        .build_many(patterns)?)
}

/// Calls `found` with each match in the text.
pub(super) fn find(text: &str, mut found: impl FnMut(Family, usize, usize)) {
    let Some(matcher) = MATCHER.as_ref() else { return };
    let mut windows: Vec<Option<(usize, usize)>> = vec![None; matcher.families.len()];
    let mut look = |place: usize, (start, end): (usize, usize)| {
        let (rules, regex) = &matcher.families[place];
        for hit in regex.find_iter(Input::new(text).range(start..end)) {
            found(rules.family, hit.start(), hit.end());
        }
    };
    for word in matcher.words.find_overlapping_iter(text) {
        let mut left = matcher.belongs[word.pattern().as_usize()];
        while left != 0 {
            let place = left.trailing_zeros() as usize;
            left &= left - 1;
            let rules = matcher.families[place].0;
            let (start, end) = (word.start().saturating_sub(rules.before), (word.end() + rules.after).min(text.len()));
            windows[place] = match windows[place] {
                Some((first, last)) if start <= last => Some((first, end.max(last))),
                Some(window) => {
                    look(place, window);
                    Some((start, end))
                }
                None => Some((start, end)),
            };
        }
    }
    for (place, window) in windows.into_iter().enumerate() {
        if let Some(window) = window {
            look(place, window);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// All matches without looking for words first.
    pub(in crate::screen) fn find_everywhere(text: &str) -> Vec<(Family, usize, usize)> {
        let matcher = MATCHER.as_ref().unwrap();
        let in_text = |(rules, regex): &(&Rules, Regex)| -> Vec<_> {
            regex.find_iter(text).map(|hit| (rules.family, hit.start(), hit.end())).collect()
        };
        matcher.families.iter().flat_map(in_text).collect()
    }

    #[test]
    fn the_rules_build_and_every_word_has_a_family() {
        let matcher = build().unwrap();
        assert!(matcher.belongs.iter().all(|families| *families != 0));
        assert_eq!(matcher.families.len(), Family::ALL.len() - 1, "all but the tricks with Unicode have rules");
        for rules in rules::ALL {
            assert_eq!(rules.words, rules.words.to_lowercase(), "{:?}", rules.family);
            assert!(rules.words.split(',').all(|word| !word.is_empty()), "{:?}", rules.family);
        }
    }
}
