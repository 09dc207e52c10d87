//! Server-sent events (the HTML standard's `text/event-stream`), up to a size. Pure.

use bytes::Bytes;

/// One event, or a comment that keeps a connection alive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Event {
    /// For `Last-Event-ID`.
    pub id: Option<String>,
    /// `message` when it is left out.
    pub name: Option<String>,
    /// Lines joined.
    pub data: Option<String>,
    /// Milliseconds to wait before connecting again.
    pub retry: Option<u64>,
}

impl Event {
    /// Bytes that it takes.
    pub fn size(&self) -> usize {
        [&self.id, &self.name, &self.data].into_iter().flatten().map(String::len).sum()
    }

    /// As it goes over the wire.
    pub fn encode(&self) -> Bytes {
        use std::fmt::Write as _;
        let mut text = String::new();
        let mut field = |name: &str, value: &str| {
            for line in value.split('\n') {
                let _ = writeln!(text, "{name}: {line}");
            }
        };
        if let Some(name) = &self.name {
            field("event", name);
        }
        if let Some(id) = &self.id {
            field("id", id);
        }
        if let Some(retry) = self.retry {
            field("retry", &retry.to_string());
        }
        if let Some(data) = &self.data {
            field("data", data);
        }
        if text.is_empty() {
            text.push_str(":\n");
        }
        text.push('\n');
        Bytes::from(text)
    }
}

/// An event is longer than was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event is longer than {0} bytes")]
pub struct TooLong(pub usize);

/// Takes bytes as they come, gives whole events.
#[derive(Debug)]
pub struct Parser {
    limit: usize,
    line: Vec<u8>,
    /// The last line ended with CR, so that an LF now belongs to it.
    after_cr: bool,
    event: Event,
    begun: bool,
    size: usize,
}

impl Parser {
    /// With the most bytes that an event may have.
    pub fn new(limit: usize) -> Self {
        Self { limit, line: Vec::new(), after_cr: false, event: Event::default(), begun: false, size: 0 }
    }

    /// Bytes of the event that has not ended.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The events that end within these bytes.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Event>, TooLong> {
        let mut events = Vec::new();
        for &byte in bytes {
            let after_cr = std::mem::take(&mut self.after_cr);
            match byte {
                b'\n' if after_cr => {}
                b'\r' | b'\n' => {
                    self.after_cr = byte == b'\r';
                    events.extend(self.end_line());
                }
                _ => {
                    self.size += 1;
                    if self.size > self.limit {
                        return Err(TooLong(self.limit));
                    }
                    self.line.push(byte);
                }
            }
        }
        Ok(events)
    }

    fn end_line(&mut self) -> Option<Event> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            self.size = 0;
            return std::mem::take(&mut self.begun).then(|| std::mem::take(&mut self.event));
        }
        self.begun = true;
        let line = String::from_utf8_lossy(&line);
        let line = line.strip_prefix('\u{feff}').unwrap_or(&line);
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "data" => match &mut self.event.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                none => *none = Some(value.to_owned()),
            },
            "event" => self.event.name = Some(value.to_owned()),
            "id" if !value.contains('\0') => self.event.id = Some(value.to_owned()),
            "retry" => self.event.retry = value.parse().ok(),
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rstest::rstest;

    fn events(text: &str) -> Vec<Event> {
        Parser::new(1000).feed(text.as_bytes()).unwrap()
    }

    fn data(text: &str) -> Event {
        Event { data: Some(text.to_owned()), ..Event::default() }
    }

    #[rstest]
    #[case::plain("data: a\n\n", vec![data("a")])]
    #[case::no_space("data:a\n\n", vec![data("a")])]
    #[case::lines("data: a\ndata: b\n\n", vec![data("a\nb")])]
    #[case::crlf("data: a\r\n\r\ndata: b\r\n\r\n", vec![data("a"), data("b")])]
    #[case::cr("data: a\r\rdata: b\r\r", vec![data("a"), data("b")])]
    #[case::comment(": hello\n\n", vec![Event::default()])]
    #[case::half("data: a\n", vec![])]
    #[case::nothing("\n\n\n", vec![])]
    #[case::all("event: message\nid: 7\nretry: 50\ndata: x\n\n", vec![Event {
        id: Some("7".into()), name: Some("message".into()), retry: Some(50), data: Some("x".into()),
    }])]
    fn events_are_read_as_the_standard_says(#[case] text: &str, #[case] wanted: Vec<Event>) {
        assert_eq!(events(text), wanted);
        // The same when every byte comes alone.
        let mut parser = Parser::new(1000);
        let singly: Vec<Event> = text.bytes().flat_map(|byte| parser.feed(&[byte]).unwrap()).collect();
        assert_eq!(singly, wanted);
    }

    #[test]
    fn an_endless_event_is_cut_off() {
        let mut parser = Parser::new(100);
        assert!(parser.feed(&[b'a'; 90]).is_ok());
        assert_eq!(parser.feed(&[b'a'; 90]).unwrap_err(), TooLong(100));
        let mut parser = Parser::new(100);
        assert!((0..50).any(|_| parser.feed(b"data: x\n").is_err()), "many lines are one event");
    }
}
