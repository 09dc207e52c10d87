//! Finds the rules' matches: the words first, with one automaton for all families, then each family's rules in the blocks
//! around its words. Counted gaps make automata without end for who mixes the words of attacks long enough: so a block is
//! looked through for the rules with gaps of any length, which make small ones, and only where those find something, for
//! the rules themselves. That is given up after a while, and what the loose ones find is taken as it is. Pure.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use regex_automata::Input;
use regex_automata::meta::Regex;
use regex_automata::util::syntax;

use super::rules::{self, Rules};
use super::{Family, MAX_FINDINGS};

/// Words of a family that are near each other are looked at together, up to about so many bytes.
const BLOCK: usize = 2048;
/// So often the rules may find nothing where the loose ones did…
const PATIENCE: usize = 32;
/// … and once more for so many bytes of text.
const BYTES_PER_PATIENCE: usize = 8192;

struct Ruled {
    rules: &'static Rules,
    exact: Regex,
    /// The same with gaps of any length.
    loose: Regex,
}

struct Matcher {
    words: AhoCorasick,
    /// Bit set of the families that each word belongs to, as places in `families`.
    belongs: Vec<u32>,
    families: Vec<Ruled>,
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
        let exact: Vec<String> = rules.patterns.iter().map(|pattern| rules::expand(pattern)).collect();
        let loose: Vec<String> = exact.iter().map(|pattern| rules::loosen(pattern)).collect();
        families.push(Ruled { rules, exact: regex(&exact)?, loose: regex(&loose)? });
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

/// Calls `found` with each match in the text, until there are as many as anybody wants to know of.
pub(super) fn find(text: &str, found: impl FnMut(Family, usize, usize)) {
    let Some(matcher) = MATCHER.as_ref() else { return };
    let patience = PATIENCE + text.len() / BYTES_PER_PATIENCE;
    let mut search = Search { text, found, hits: 0, furthest: 0, until: usize::MAX, patience };
    let mut blocks: Vec<Option<(usize, usize)>> = vec![None; matcher.families.len()];
    for word in matcher.words.find_overlapping_iter(text) {
        if word.start() > search.until.saturating_add(BLOCK) {
            break;
        }
        let mut left = matcher.belongs[word.pattern().as_usize()];
        while left != 0 {
            let place = left.trailing_zeros() as usize;
            left &= left - 1;
            let family = &matcher.families[place];
            let Rules { before, after, .. } = family.rules;
            let (start, end) = (word.start().saturating_sub(*before), (word.end() + after).min(text.len()));
            blocks[place] = match blocks[place] {
                Some((first, last)) if start <= last && last - first < BLOCK => Some((first, end.max(last))),
                Some(block) => {
                    search.look(family, block);
                    Some((start, end))
                }
                None => Some((start, end)),
            };
        }
    }
    for (family, block) in matcher.families.iter().zip(blocks) {
        if let Some(block) = block {
            search.look(family, block);
        }
    }
}

struct Search<'a, F> {
    text: &'a str,
    found: F,
    hits: usize,
    furthest: usize,
    /// A match that begins behind this is not among the first [`MAX_FINDINGS`].
    until: usize,
    patience: usize,
}

impl<F: FnMut(Family, usize, usize)> Search<'_, F> {
    fn look(&mut self, Ruled { rules, exact, loose }: &Ruled, (start, end): (usize, usize)) {
        let block = Input::new(self.text).range(start..end);
        if start > self.until || !loose.is_match(block.clone()) {
            return;
        }
        if self.patience == 0 {
            self.hit(rules.family, start, end);
            return;
        }
        let before = self.hits;
        for hit in exact.find_iter(block) {
            self.hit(rules.family, hit.start(), hit.end());
        }
        if self.hits == before {
            self.patience -= 1;
        }
    }

    fn hit(&mut self, family: Family, start: usize, end: usize) {
        (self.found)(family, start, end);
        self.hits += 1;
        self.furthest = self.furthest.max(end);
        if self.hits == MAX_FINDINGS {
            self.until = self.furthest;
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
        let in_text = |ruled: &Ruled| -> Vec<_> {
            ruled.exact.find_iter(text).map(|hit| (ruled.rules.family, hit.start(), hit.end())).collect()
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
