//! How inputs are changed. Pure.

/// Numbers at which parsers break.
const NUMBERS: &[&str] = &[
    "0",
    "1",
    "-1",
    "80",
    "255",
    "256",
    "999",
    "1000",
    "1001",
    "65535",
    "65536",
    "2147483647",
    "2147483648",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551616",
    "1e308",
    "1e999",
    "0.1",
    "00000000000000000001",
    "99999999999999999999999999999999999999999",
];
/// Characters that are counted, cut or drawn differently than one byte or one column.
const CHARACTERS: &[&str] = &[
    "\0",
    "\u{7f}",
    "\u{85}",
    "\u{a0}",
    "é",
    "e\u{301}",
    "字",
    "👍",
    "👩\u{200d}💻",
    "\u{200b}",
    "\u{202e}",
    "\u{2028}",
    "\u{feff}",
    "\u{ffff}",
    "\u{10ffff}",
    "ﬁ",
    "İ",
    "ẞ",
    "\u{1f1e9}\u{1f1ea}",
    "\u{e000}",
];

/// A small generator; what it makes need not be unpredictable, only repeatable.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    /// Less than `bound`; 0 for a bound of 0.
    #[allow(clippy::cast_possible_truncation, reason = "smaller than a usize")]
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        if bound == 0 { 0 } else { (self.next() % bound as u64) as usize }
    }

    #[allow(clippy::cast_possible_truncation, reason = "one byte is wanted")]
    fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> Option<&'a T> {
        of.get(self.below(of.len())).copied()
    }
}

/// Makes new inputs out of old ones.
pub(crate) struct Mutator {
    pub(crate) tokens: &'static [&'static [u8]],
    pub(crate) max_bytes: usize,
}

impl Mutator {
    pub(crate) fn mutate(&self, pool: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
        // The newest ones half of the time: they showed something new.
        let recent = pool.len().min(32);
        let base = if random.below(2) == 0 { pool.len() - 1 - random.below(recent) } else { random.below(pool.len()) };
        let mut input = pool[base].clone();
        for _ in 0..=random.below(6) {
            self.step(&mut input, pool, random);
        }
        input.truncate(self.max_bytes);
        input
    }

    fn step(&self, input: &mut Vec<u8>, pool: &[Vec<u8>], random: &mut Random) {
        let at = random.below(input.len() + 1);
        let end = (at + 1 + random.below(32)).min(input.len());
        match random.below(12) {
            0 if at < input.len() => input[at] ^= 1 << random.below(8),
            1 if at < input.len() => input[at] = random.byte(),
            2 if at < end => {
                input.drain(at..end);
            }
            3 if at < end => {
                // Deep nesting and long runs come from here.
                let most = if random.below(8) == 0 { 256 } else { 4 };
                let part = input[at..end].repeat(1 + random.below(most));
                input.splice(at..at, part);
            }
            4 => {
                let bytes: Vec<u8> = (0..=random.below(8)).map(|_| random.byte()).collect();
                input.splice(at..at, bytes);
            }
            5 => {
                let other = &pool[random.below(pool.len())];
                let from = random.below(other.len() + 1);
                let to = (from + random.below(64)).min(other.len());
                input.splice(at..at, other[from..to].iter().copied());
            }
            6 => {
                let other = &pool[random.below(pool.len())];
                let from = random.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            7 => number(input, at, random),
            8 => {
                if let Some(character) = random.pick(CHARACTERS) {
                    input.splice(at..at, character.bytes());
                }
            }
            9 if at < end => {
                if let Some(token) = random.pick(self.tokens) {
                    input.splice(at..end, token.iter().copied());
                }
            }
            _ => {
                if let Some(token) = random.pick(self.tokens) {
                    input.splice(at..at, token.iter().copied());
                }
            }
        }
    }
}

/// Replaces the first number after `at`, or writes one there.
fn number(input: &mut Vec<u8>, at: usize, random: &mut Random) {
    let Some(new) = random.pick(NUMBERS) else { return };
    let start = input[at..].iter().position(u8::is_ascii_digit).map_or(at, |offset| at + offset);
    let digits = input[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    input.splice(start..start + digits, new.bytes());
}
