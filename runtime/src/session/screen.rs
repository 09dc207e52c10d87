//! The terminal emulator that an agent draws on: bytes in, lines of text out. Pure, no clock and no I/O.
//!
//! 80 columns as coder/agentapi's clients expect, 1000 rows so that a reply rarely scrolls; what does scroll
//! off is kept (bounded) until the next user message, or a long reply would lose its beginning.

use std::num::NonZeroU16;

/// Columns of the agent's terminal.
pub(super) const COLUMNS: u16 = 80;
/// Rows of the agent's terminal.
pub(super) const ROWS: u16 = 1000;
/// Rows that are kept after they scrolled off the top.
const SCROLLBACK_ROWS: usize = 4000;
/// Replies that may wait to be written to the agent; an agent that only asks and never reads gets no more.
const MAX_REPLY_BYTES: usize = 4096;

/// What the terminal shows at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Frame {
    /// Scrolled-off rows since the last mark, then the rows of the screen; right-trimmed, no blank rows at the end.
    pub lines: Vec<String>,
    /// Index in `lines` of the first row of the screen.
    pub screen_start: usize,
    /// The program understands bracketed paste.
    pub bracketed_paste: bool,
    /// The program says of itself that it works, where its screen may not.
    pub working: bool,
    /// The program has gone to the alternate screen, which editors and pagers use.
    pub alternate: bool,
}

impl Frame {
    /// The rows of the screen as one text.
    pub(super) fn screen_text(&self) -> String {
        self.screen().join("\n")
    }

    /// The rows of the screen.
    pub(super) fn screen(&self) -> &[String] {
        self.lines.get(self.screen_start..).unwrap_or_default()
    }
}

/// Answers the questions that a program asks its terminal; without the answers some agents wait or refuse to start.
#[derive(Default)]
struct Responder {
    replies: Vec<u8>,
    working: bool,
}

impl Responder {
    fn reply(&mut self, bytes: &[u8]) {
        if self.replies.len() + bytes.len() <= MAX_REPLY_BYTES {
            self.replies.extend_from_slice(bytes);
        }
    }
}

impl vt100::Callbacks for Responder {
    fn unhandled_csi(
        &mut self,
        screen: &mut vt100::Screen,
        first: Option<u8>,
        _second: Option<u8>,
        params: &[&[u16]],
        action: char,
    ) {
        let param = params.first().and_then(|values| values.first()).copied().unwrap_or(0);
        match (first, action, param) {
            // Device status: "ready".
            (None, 'n', 5) => self.reply(b"\x1b[0n"),
            // Cursor position, counted from 1.
            (None, 'n', 6) => {
                let (row, column) = screen.cursor_position();
                self.reply(format!("\x1b[{};{}R", row + 1, column + 1).as_bytes());
            }
            // Primary device attributes: a VT220 with colour.
            (None, 'c', 0) => self.reply(b"\x1b[?62;22c"),
            // Keyboard protocol query: none of the extensions is on.
            (Some(b'?'), 'u', _) => self.reply(b"\x1b[?0u"),
            _ => {}
        }
    }

    fn unhandled_osc(&mut self, _screen: &mut vt100::Screen, params: &[&[u8]]) {
        // Colour queries: light text on a dark background, so that agents pick their dark theme at once.
        match params {
            [b"10", b"?"] => self.reply(b"\x1b]10;rgb:ffff/ffff/ffff\x1b\\"),
            [b"11", b"?"] => self.reply(b"\x1b]11;rgb:0000/0000/0000\x1b\\"),
            // State of the program, such as `state=working:app=codex`.
            [b"7501", said] => {
                if let Some(state) = said.strip_prefix(b"state=") {
                    self.working = state.split(|byte| *byte == b':').next() == Some(b"working");
                }
            }
            _ => {}
        }
    }
}

/// The emulator.
pub(super) struct Terminal {
    parser: vt100::Parser<Responder>,
    /// Beginning of a character whose end has not arrived. The emulator would keep it too, but loses the character
    /// after it when one more is cut off behind that.
    partial: Vec<u8>,
}

impl Default for Terminal {
    fn default() -> Self {
        Self::new()
    }
}

impl Terminal {
    /// An empty terminal of [`COLUMNS`] x [`ROWS`].
    pub(super) fn new() -> Self {
        let rows = NonZeroU16::new(ROWS).unwrap_or(NonZeroU16::MIN);
        let columns = NonZeroU16::new(COLUMNS).unwrap_or(NonZeroU16::MIN);
        let parser = vt100::Parser::new_with_callbacks(rows, columns, SCROLLBACK_ROWS, Responder::default());
        Self { parser, partial: Vec::new() }
    }

    /// Processes output of the program and returns what the terminal answers to it.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Vec<u8> {
        let joined = [std::mem::take(&mut self.partial).as_slice(), bytes].concat();
        let (whole, cut) = joined.split_at(joined.len() - cut_off(&joined));
        self.parser.process(whole);
        self.partial = cut.to_vec();
        std::mem::take(&mut self.parser.callbacks_mut().replies)
    }

    /// Forgets the rows that scrolled off: they belong to an earlier turn.
    pub(super) fn mark(&mut self) {
        self.parser.screen_mut().clear_scrollback();
    }

    /// What the terminal shows now.
    pub(super) fn frame(&mut self) -> Frame {
        let working = self.parser.callbacks().working;
        let screen = self.parser.screen_mut();
        let (bracketed_paste, alternate) = (screen.bracketed_paste(), screen.alternate_screen());
        let scrolled = screen.scrollback_len();
        let mut lines = Vec::new();
        // The emulator shows the scrollback through a window as high as the screen.
        let mut offset = scrolled;
        while offset > 0 {
            screen.set_scrollback(offset);
            let take = offset.min(usize::from(ROWS));
            lines.extend(screen.rows(0, COLUMNS).take(take).map(|row| row.trim_end().to_owned()));
            offset -= take;
        }
        screen.set_scrollback(0);
        let screen_start = lines.len();
        lines.extend(screen.rows(0, COLUMNS).map(|row| row.trim_end().to_owned()));
        while lines.len() > screen_start && lines.last().is_some_and(String::is_empty) {
            lines.pop();
        }
        Frame { lines, screen_start, bracketed_paste, working, alternate }
    }
}

/// How many bytes at the end are the beginning of a character in UTF-8.
fn cut_off(bytes: &[u8]) -> usize {
    for length in 1..=bytes.len().min(3) {
        let end = &bytes[bytes.len() - length..];
        match end[0] {
            0x80..=0xbf => {}
            0xc0.. => {
                let cut = std::str::from_utf8(end).is_err_and(|error| error.error_len().is_none());
                return if cut { length } else { 0 };
            }
            _ => return 0,
        }
    }
    0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use std::fmt::Write as _;

    use super::*;

    fn shown(bytes: &[u8]) -> Vec<String> {
        let mut terminal = Terminal::new();
        terminal.feed(bytes);
        terminal.frame().lines
    }

    #[test]
    fn wide_characters_keep_their_columns() {
        assert_eq!(shown("你好 world\r\n👍ok".as_bytes()), ["你好 world", "👍ok"]);
        // 40 wide characters fill a row; the next one starts the next row.
        let lines = shown("字".repeat(41).as_bytes());
        assert_eq!(lines[0].chars().count(), 40);
        assert_eq!(lines[1], "字");
    }

    #[test]
    fn a_character_split_between_two_reads_is_not_damaged() {
        let mut terminal = Terminal::new();
        for byte in "é你👍".as_bytes() {
            terminal.feed(&[*byte]);
        }
        assert_eq!(terminal.frame().lines, ["é你👍"]);
        // Two cuts anywhere: the emulator by itself loses what is between two characters that are cut.
        let text = "ma\u{301}0字1👍2é";
        for first in 0..text.len() {
            for second in first..text.len() {
                let mut terminal = Terminal::new();
                for part in [0..first, first..second, second..text.len()] {
                    terminal.feed(&text.as_bytes()[part]);
                }
                assert_eq!(terminal.frame().lines, [text], "{first}, {second}");
            }
        }
    }

    #[test]
    fn the_beginning_of_a_character_is_kept_back_and_nothing_else() {
        for character in ["é", "字", "👍"] {
            for length in 1..character.len() {
                let text = format!("é{character}");
                assert_eq!(cut_off(&text.as_bytes()[..2 + length]), length, "{character}");
            }
            assert_eq!(cut_off(character.as_bytes()), 0);
        }
        for none in [b"".as_slice(), b"a", b"\xff", b"\xc3\xff", b"\xf5\x80", b"\xed\xa0", b"\x80\x80"] {
            assert_eq!(cut_off(none), 0, "{none:?}");
        }
    }

    #[test]
    fn the_alternate_screen_hides_and_gives_back_the_main_one() {
        let mut terminal = Terminal::new();
        terminal.feed(b"main\x1b[?1049h\x1b[Halternate");
        assert_eq!(terminal.frame().lines, ["alternate"]);
        terminal.feed(b"\x1b[?1049l");
        assert_eq!(terminal.frame().lines, ["main"]);
    }

    #[test]
    fn what_a_program_says_of_its_state_is_heard() {
        let mut terminal = Terminal::new();
        let mut says = |text: &str| {
            terminal.feed(text.as_bytes());
            terminal.frame().working
        };
        assert!(!says("x"));
        assert!(says("\x1b]7501;state=working:app=codex\x1b\\"));
        assert!(says("\x1b]7501;?\x07 more text"));
        assert!(!says("\x1b]7501;state=blocked:app=codex:kind=permission\x07"));
        assert!(!says("\x1b]7501;state=done\x07"));
    }

    #[test]
    fn a_program_that_asks_for_another_size_keeps_this_one() {
        let mut terminal = Terminal::new();
        terminal.feed(b"\x1b[8;24;40t\x1b[?3h\x1b[18t");
        let wide = "x".repeat(usize::from(COLUMNS));
        terminal.feed(wide.as_bytes());
        assert_eq!(terminal.frame().lines, [wide]);
    }

    #[test]
    fn rows_that_scroll_off_are_kept_until_the_mark() {
        let mut terminal = Terminal::new();
        let mut text = String::new();
        for i in 0..2500 {
            write!(text, "line {i}\r\n").unwrap();
        }
        terminal.feed(text.as_bytes());
        let frame = terminal.frame();
        assert_eq!(frame.lines.len(), 2500);
        assert_eq!(frame.lines[0], "line 0");
        assert_eq!(frame.lines[2499], "line 2499");
        assert_eq!(frame.screen()[0], "line 1501");
        terminal.mark();
        assert_eq!(terminal.frame().lines[0], "line 1501");
    }

    #[test]
    fn clearing_the_scrollback_is_obeyed_so_that_a_redraw_is_not_doubled() {
        let mut terminal = Terminal::new();
        terminal.feed("x\r\n".repeat(1500).as_bytes());
        terminal.feed(b"\x1b[2J\x1b[3J\x1b[Hredrawn");
        assert_eq!(terminal.frame().lines, ["redrawn"]);
    }

    #[test]
    fn ten_megabytes_of_output_stay_bounded() {
        let mut terminal = Terminal::new();
        let chunk = "0123456789abcdef ".repeat(4096);
        for _ in 0..(10 * 1024 * 1024 / chunk.len()) {
            terminal.feed(chunk.as_bytes());
        }
        assert!(terminal.frame().lines.len() <= SCROLLBACK_ROWS + usize::from(ROWS));
    }

    #[test]
    fn questions_to_the_terminal_are_answered() {
        let mut terminal = Terminal::new();
        assert_eq!(terminal.feed(b"ab\x1b[6n"), b"\x1b[1;3R");
        assert_eq!(terminal.feed(b"\x1b[c"), b"\x1b[?62;22c");
        assert!(terminal.feed(&b"\x1b[6n".repeat(10_000)).len() <= MAX_REPLY_BYTES);
    }
}
