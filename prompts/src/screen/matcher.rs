//! Finds the rules' matches in three steps, each of which sees less text than the one before: words that every match has,
//! with one automaton; all rules with gaps of any length, in one pass around those words; the rules themselves, where
//! the second step has found something. Counted gaps make automata without end for who mixes the words of attacks long
//! enough, so the third step is given up after a while, and what the second one has found is taken as it is. Pure.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use regex_automata::meta::Regex;
use regex_automata::util::syntax;
use regex_automata::{Input, PatternSet};

use super::rules::{self, Rules};
use super::{Family, MAX_FINDINGS};

/// Words that are near each other are looked at together, up to about so many bytes.
const BLOCK: usize = 2048;
/// So often the rules may find nothing where there seemed to be something…
const PATIENCE: usize = 24;
/// … and once more for so many bytes of text.
const BYTES_PER_PATIENCE: usize = 4096;

struct Matcher {
    words: AhoCorasick,
    /// How far a match with the word can reach before and behind it.
    reaches: Vec<(usize, usize)>,
    /// The longest way that a match begins before a word.
    before: usize,
    /// All rules of all families, with gaps of any length.
    loose: Regex,
    /// The family of each, as a place in `families`.
    owners: Vec<usize>,
    families: Vec<(&'static Rules, Regex)>,
}

/// There is always one: the rules are constants, and a test builds them.
static MATCHER: LazyLock<Option<Matcher>> = LazyLock::new(|| build().ok());

fn build() -> Result<Matcher, Box<dyn std::error::Error + Send + Sync>> {
    let mut reaches: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    let (mut families, mut loose, mut owners) = (Vec::new(), Vec::new(), Vec::new());
    for (place, rules) in rules::ALL.iter().enumerate() {
        for word in rules.words.split(',') {
            let forms = match word.strip_suffix('~') {
                Some(name) => rules::ASSIGNS.map(|sign| format!("{name}{sign}")).to_vec(),
                None => vec![word.to_owned()],
            };
            for form in forms {
                let (before, after) = reaches.entry(form).or_default();
                (*before, *after) = (rules.before.max(*before), rules.after.max(*after));
            }
        }
        let patterns: Vec<String> = rules.patterns.iter().map(|pattern| rules::expand(pattern)).collect();
        loose.extend(patterns.iter().map(|pattern| rules::loosen(pattern)));
        owners.resize(loose.len(), place);
        families.push((rules, regex(&patterns, Regex::config())?));
    }
    let (words, reaches): (Vec<String>, Vec<_>) = reaches.into_iter().unzip();
    let words = AhoCorasick::builder()
        .ascii_case_insensitive(true)
        .match_kind(MatchKind::Standard)
        .kind(Some(AhoCorasickKind::DFA))
        .build(&words)?;
    let before = reaches.iter().map(|(before, _)| *before).max().unwrap_or_default();
    let loose = regex(&loose, Regex::config().match_kind(regex_automata::MatchKind::All))?;
    Ok(Matcher { words, reaches, before, loose, owners, families })
}

fn regex(
    patterns: &[String],
    config: regex_automata::meta::Config,
) -> Result<Regex, Box<dyn std::error::Error + Send + Sync>> {
    Ok(Regex::builder()
        // ASCII is all there is after folding.
        .syntax(syntax::Config::new().unicode(false).utf8(false).case_insensitive(true))
        .configure(config.utf8_empty(false).hybrid_cache_capacity(8 << 20))
        .build_many(patterns)?)
}

/// Calls `found` with each match in the text, until there are as many as anybody wants to know of.
pub(super) fn find(text: &str, found: impl FnMut(Family, usize, usize)) {
    let Some(matcher) = MATCHER.as_ref() else { return };
    let mut search = Search {
        matcher,
        text,
        found,
        seen: PatternSet::new(matcher.owners.len()),
        hits: 0,
        furthest: 0,
        until: usize::MAX,
        patience: PATIENCE + text.len() / BYTES_PER_PATIENCE,
    };
    let mut block: Option<(usize, usize)> = None;
    for word in matcher.words.find_overlapping_iter(text) {
        if word.start().saturating_sub(matcher.before) > search.until {
            return;
        }
        let (before, after) = matcher.reaches[word.pattern().as_usize()];
        let (start, end) = (word.start().saturating_sub(before), (word.end() + after).min(text.len()));
        block = match block {
            Some((first, last)) if start <= last && last - first < BLOCK => Some((first.min(start), last.max(end))),
            Some(full) => {
                search.look(full);
                Some((start, end))
            }
            None => Some((start, end)),
        };
    }
    if let Some(block) = block {
        search.look(block);
    }
}

struct Search<'a, F> {
    matcher: &'a Matcher,
    text: &'a str,
    found: F,
    seen: PatternSet,
    hits: usize,
    furthest: usize,
    /// A match that begins behind this is not among the first [`MAX_FINDINGS`].
    until: usize,
    patience: usize,
}

impl<F: FnMut(Family, usize, usize)> Search<'_, F> {
    fn look(&mut self, (start, end): (usize, usize)) {
        if start > self.until {
            return;
        }
        let block = Input::new(self.text).range(start..end);
        self.seen.clear();
        self.matcher.loose.which_overlapping_matches(&block, &mut self.seen);
        let mut places: Vec<usize> = self.seen.iter().map(|pattern| self.matcher.owners[pattern.as_usize()]).collect();
        places.dedup();
        for place in places {
            let (rules, regex) = &self.matcher.families[place];
            if self.patience == 0 {
                self.hit(rules.family, start, end);
                continue;
            }
            let before = self.hits;
            for hit in regex.find_iter(block.clone()) {
                self.hit(rules.family, hit.start(), hit.end());
            }
            if self.hits == before {
                self.patience -= 1;
            }
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
        let in_text = |(rules, regex): &(&Rules, Regex)| -> Vec<_> {
            regex.find_iter(text).map(|hit| (rules.family, hit.start(), hit.end())).collect()
        };
        matcher.families.iter().flat_map(in_text).collect()
    }

    #[test]
    fn the_rules_build_and_every_word_has_a_family() {
        let matcher = build().unwrap();
        assert_eq!(matcher.owners.len(), matcher.loose.pattern_len());
        assert_eq!(matcher.families.len(), Family::ALL.len() - 1, "all but the tricks with Unicode have rules");
        for rules in rules::ALL {
            assert_eq!(rules.words, rules.words.to_lowercase(), "{:?}", rules.family);
            assert!(rules.words.split(',').all(|word| !word.is_empty()), "{:?}", rules.family);
        }
    }
}
