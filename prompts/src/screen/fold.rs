//! Undoes tricks with Unicode: characters that look like ASCII become ASCII, invisible ones go, hidden ones show. Keeps
//! track of where everything was. What is a trick in itself is a finding. ASCII is not copied. Pure.

use std::borrow::Cow;

use super::{Family, Finding};

/// So many invisible characters between letters are no accident of copy and paste.
const HIDDEN_IN_WORDS: usize = 3;
/// A longer word is none.
const MAX_WORD: usize = 64;

/// A text as its reader would read it.
pub(super) struct Folded<'a> {
    /// The text.
    pub text: Cow<'a, str>,
    /// Tricks.
    pub tricks: Vec<Finding>,
    /// From this byte of the folded text on, up to the next of these, the original is at this byte and goes in step.
    steps: Vec<(usize, usize)>,
}

impl Folded<'_> {
    /// Where a piece of the folded text is in the original.
    pub(super) fn original(&self, start: usize, end: usize) -> (usize, usize) {
        let start = self.text.floor_char_boundary(start);
        let end = self.text.ceil_char_boundary(end);
        let after = self.steps.partition_point(|(folded, _)| *folded <= start);
        let first = after.checked_sub(1).map_or(start, |index| self.at(index, start));
        let before = self.steps.partition_point(|(folded, _)| *folded < end);
        let last = match self.steps.get(before) {
            Some((folded, original)) if *folded == end => *original,
            _ => before.checked_sub(1).map_or(end, |index| self.at(index, end)),
        };
        (first, last.max(first))
    }

    fn at(&self, index: usize, place: usize) -> usize {
        let (folded, original) = self.steps[index];
        original + (place - folded)
    }
}

/// What becomes of a character that is not ASCII.
enum Fate {
    /// It stays.
    Keep,
    /// It looks like this.
    Looks(u8),
    /// It is a letter of another script that can't be told from this one.
    Twin(u8),
    /// It can't be seen.
    Invisible,
    /// It turns the text around.
    Turns,
    /// It can't be seen and stands for this one.
    Tag(u8),
}

/// See the module.
pub(super) fn fold(text: &str) -> Folded<'_> {
    if text.is_ascii() {
        return Folded { text: Cow::Borrowed(text), tricks: Vec::new(), steps: Vec::new() };
    }
    let mut folder = Folder { text, out: String::with_capacity(text.len()), ..Folder::default() };
    let mut at = 0;
    while at < text.len() {
        let run = text.as_bytes()[at..].iter().position(|byte| !byte.is_ascii()).unwrap_or(text.len() - at);
        folder.out.push_str(&text[at..at + run]);
        at += run;
        if let Some(c) = text[at..].chars().next() {
            at = folder.take(at, c);
        }
    }
    if folder.hidden >= HIDDEN_IN_WORDS {
        let (start, end) = folder.hidden_at;
        folder.tricks.push(Finding { start, end, family: Family::Unicode });
    }
    Folded { text: Cow::Owned(folder.out), tricks: folder.tricks, steps: folder.steps }
}

#[derive(Default)]
struct Folder<'a> {
    text: &'a str,
    out: String,
    tricks: Vec<Finding>,
    steps: Vec<(usize, usize)>,
    hidden: usize,
    hidden_at: (usize, usize),
    /// Words up to here have been looked at.
    words_until: usize,
}

impl Folder<'_> {
    /// Takes one character; returns where the next one is.
    fn take(&mut self, at: usize, c: char) -> usize {
        let end = at + c.len_utf8();
        match fate(c) {
            Fate::Keep => {
                if c == '\u{1f3f4}'
                    && let Some(flag) = flag(&self.text[end..])
                {
                    self.step(end + flag);
                    return end + flag;
                }
                self.out.push(c);
                return end;
            }
            Fate::Looks(ascii) => self.out.push(char::from(ascii)),
            Fate::Twin(ascii) => {
                self.twin(at);
                self.out.push(char::from(ascii));
            }
            Fate::Invisible => {
                let letter = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphabetic());
                if letter(self.out.bytes().last()) && letter(self.text.as_bytes().get(end).copied()) {
                    let first = if self.hidden == 0 { at } else { self.hidden_at.0 };
                    self.hidden += 1;
                    self.hidden_at = (first, end);
                }
            }
            Fate::Turns => self.trick(at, end),
            Fate::Tag(ascii) => {
                self.trick(at, end);
                self.out.push(char::from(ascii));
            }
        }
        self.step(end);
        end
    }

    fn step(&mut self, original: usize) {
        // Where it was taken from is known from the step before; where it goes on is news.
        self.steps.push((self.out.len(), original));
    }

    /// One finding for tricks that touch each other.
    fn trick(&mut self, start: usize, end: usize) {
        match self.tricks.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => self.tricks.push(Finding { start, end, family: Family::Unicode }),
        }
    }

    /// A word of Latin letters and twins, in which a twin stands before a Latin letter, was made to deceive: people who
    /// mix scripts add endings.
    fn twin(&mut self, at: usize) {
        if at < self.words_until {
            return;
        }
        let letter = |c: &char| c.is_alphabetic();
        let before: usize = self.text[..at].chars().rev().take_while(letter).take(MAX_WORD).map(char::len_utf8).sum();
        let after: usize = self.text[at..].chars().take_while(letter).take(MAX_WORD).map(char::len_utf8).sum();
        let (start, end) = (at - before, at + after);
        self.words_until = end;
        let word = &self.text[start..end];
        let latin = word.chars().filter(char::is_ascii_alphabetic).count();
        let others_are_twins = word.chars().all(|c| c.is_ascii_alphabetic() || matches!(fate(c), Fate::Twin(_)));
        let leads = !word.trim_end_matches(|c: char| !c.is_ascii_alphabetic()).is_ascii();
        if latin >= 2 && word.chars().count() >= 4 && others_are_twins && leads {
            self.tricks.push(Finding { start, end, family: Family::Unicode });
        }
    }
}

/// Length of the tags that make a flag of a black one, as for Scotland.
fn flag(rest: &str) -> Option<usize> {
    let tags = rest.chars().take(8).take_while(|c| ('\u{e0030}'..='\u{e007a}').contains(c)).count();
    let length = tags * 4;
    (tags >= 3 && rest[length..].starts_with('\u{e007f}')).then_some(length + 4)
}

fn letter(offset: u32) -> u8 {
    b'a' + u8::try_from(offset % 26).unwrap_or_default()
}

fn fate(c: char) -> Fate {
    use Fate::{Invisible, Keep, Looks, Tag, Turns, Twin};
    let code = u32::from(c);
    match code {
        // Most other scripts, quickly.
        0x0600..=0x06ff if code != 0x061c => Keep,
        0x0900..=0x0dff | 0x3040..=0xd7ff => Keep,
        0x00a0 | 0x1680 | 0x2000..=0x200a | 0x2028 | 0x2029 | 0x202f | 0x205f | 0x3000 | 0x0085 => Looks(b' '),
        _ if is_invisible(code) => Invisible,
        0x202d | 0x202e => Turns,
        0xe0020..=0xe007e => Tag(u8::try_from(code - 0xe0000).unwrap_or(b' ')),
        0xff01..=0xff5e => Looks(u8::try_from(code - 0xff01 + 0x21).unwrap_or(b' ')),
        0x1d400..=0x1d6a3 => Looks(letter((code - 0x1d400) % 52)),
        0x1d7ce..=0x1d7ff => Looks(b'0' + u8::try_from((code - 0x1d7ce) % 10).unwrap_or_default()),
        0x249c..=0x24b5 => Looks(letter(code - 0x249c)),
        0x24b6..=0x24e9 => Looks(letter(code - 0x24b6)),
        0x1f110..=0x1f129 => Looks(letter(code - 0x1f110)),
        0x1f130..=0x1f149 => Looks(letter(code - 0x1f130)),
        0x1f150..=0x1f169 => Looks(letter(code - 0x1f150)),
        0x1f170..=0x1f189 => Looks(letter(code - 0x1f170)),
        0x2018 | 0x2019 | 0x201b | 0x2032 => Looks(b'\''),
        0x201c | 0x201d | 0x2033 => Looks(b'"'),
        0x2010..=0x2015 | 0x2212 => Looks(b'-'),
        _ => match (twin(c), looks(c)) {
            (Some(ascii), _) => Twin(ascii),
            (_, Some(ascii)) => Looks(ascii),
            _ => Keep,
        },
    }
}

/// Takes no room: joiners, marks, fillers, variation selectors, and what sets a direction without turning text around.
fn is_invisible(code: u32) -> bool {
    matches!(code, 0x00ad | 0x034f | 0x061c | 0x115f | 0x1160 | 0x17b4 | 0x17b5 | 0x180b..=0x180f | 0xfeff | 0xffa0)
        || matches!(code, 0x0300..=0x036f | 0x200b..=0x200f | 0x202a..=0x202c | 0x2060..=0x206f | 0xfe00..=0xfe0f)
        || matches!(code, 0xe0000..=0xe001f | 0xe007f | 0xe0100..=0xe01ef)
}

/// Cyrillic and Greek letters that are drawn like a Latin one.
fn twin(c: char) -> Option<u8> {
    Some(match c {
        'а' | 'А' | 'Α' | 'α' => b'a',
        'В' | 'Β' => b'b',
        'с' | 'С' | 'ϲ' => b'c',
        'ԁ' => b'd',
        'е' | 'Е' | 'Ε' | 'є' => b'e',
        'һ' | 'Н' | 'Η' => b'h',
        'і' | 'І' | 'ї' | 'Ι' | 'ι' => b'i',
        'ј' | 'Ј' | 'ϳ' => b'j',
        'К' | 'Κ' | 'κ' => b'k',
        'ӏ' => b'l',
        'М' | 'Μ' => b'm',
        'Ν' => b'n',
        'о' | 'О' | 'Ο' | 'ο' | 'օ' => b'o',
        'р' | 'Р' | 'Ρ' | 'ρ' => b'p',
        'ԛ' => b'q',
        'ѕ' | 'Ѕ' => b's',
        'Т' | 'Τ' => b't',
        'υ' | 'ս' => b'u',
        'ν' | 'ѵ' => b'v',
        'ԝ' => b'w',
        'х' | 'Х' | 'Χ' | 'χ' => b'x',
        'у' | 'У' | 'Υ' | 'γ' => b'y',
        'Ζ' => b'z',
        _ => return None,
    })
}

/// Latin letters with something added, in another style, and other letters that can be read as Latin ones.
fn looks(c: char) -> Option<u8> {
    Some(match c {
        'à'..='å' | 'À'..='Å' | 'ā'..='ą' | 'Ā' | 'ɑ' | 'ᴀ' | 'ª' => b'a',
        'ʙ' | 'ℬ' | 'в' => b'b',
        'ç' | 'Ç' | 'Ć'..='č' | 'ᴄ' | 'ℭ' | 'ℂ' => b'c',
        'Ď'..='đ' | 'ᴅ' | 'ⅅ' | 'ⅆ' => b'd',
        'è'..='ë' | 'È'..='Ë' | 'Ē'..='ě' | 'ᴇ' | 'ℯ' | 'ℰ' | 'ⅇ' | 'ε' | 'ё' => b'e',
        'ꜰ' | 'ℱ' | 'ƒ' => b'f',
        'Ĝ'..='ģ' | 'ɡ' | 'ɢ' | 'ℊ' => b'g',
        'Ĥ'..='ħ' | 'ʜ' | 'ℋ'..='ℎ' | 'н' => b'h',
        'ì'..='ï' | 'Ì'..='Ï' | 'Ĩ'..='ı' | 'ɪ' | 'ɩ' | 'ℐ' | 'ℑ' | 'ℹ' | 'ⅈ' => b'i',
        'Ĵ' | 'ĵ' | 'ᴊ' | 'ⅉ' => b'j',
        'Ķ'..='ĸ' | 'ᴋ' | 'к' => b'k',
        'Ĺ'..='ł' | 'ʟ' | 'ℒ' | 'ℓ' => b'l',
        'ᴍ' | 'ℳ' | 'м' => b'm',
        'ñ' | 'Ñ' | 'Ń'..='ŉ' | 'ɴ' | 'ℕ' | 'η' | 'п' => b'n',
        'ò'..='ö' | 'ø' | 'Ò'..='Ö' | 'Ø' | 'Ō'..='ő' | 'ᴏ' | 'ℴ' | 'º' => b'o',
        'ᴘ' | 'ℙ' => b'p',
        'ℚ' => b'q',
        'Ŕ'..='ř' | 'ʀ' | 'ℛ'..='ℝ' | 'г' => b'r',
        'Ś'..='š' | 'ſ' | 'ꜱ' => b's',
        'Ţ'..='ŧ' | 'ᴛ' | 'τ' | 'т' => b't',
        'ù'..='ü' | 'Ù'..='Ü' | 'Ũ'..='ų' | 'ᴜ' => b'u',
        'ᴠ' => b'v',
        'Ŵ' | 'ŵ' | 'ᴡ' | 'ω' => b'w',
        'ý' | 'ÿ' | 'Ý' | 'Ŷ'..='Ÿ' | 'ʏ' => b'y',
        'Ź'..='ž' | 'ᴢ' | 'ℤ' => b'z',
        _ => return None,
    })
}
