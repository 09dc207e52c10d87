//! The box in which an agent asks for a permission: found on its screen by what its data file says. Pure.

use serde::Deserialize;

use super::format::{is_frame_bottom, is_frame_top};

/// The box is within this many lines of the bottom; a command that is asked about can be long.
const BOX_LINES: usize = 200;

/// So many lines above the answers belong to a box whose first line is not known.
const TEXT_LINES: usize = 12;

/// What marks the chosen answer.
const MARKS: [char; 4] = ['❯', '›', '>', '▌'];

/// What is known about an agent's permission box.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PermissionBox {
    /// The last line on the screen holds one of these.
    pub footers: Vec<String>,
    /// Its first line begins with one of these; else as much belongs to it as is likely to.
    pub starts: Vec<String>,
    /// Some line of it holds one of these; when there are none, any box is a question.
    #[serde(default)]
    pub asks: Vec<String>,
    /// How it lists the answers.
    pub options: Options,
    /// The keystrokes that reject, whatever the list looks like.
    pub reject: String,
    /// What the answers are, the first rule that fits; the others allow once.
    #[serde(default)]
    pub kinds: Vec<KindRule>,
}

/// How a box lists its answers, and so how one is given.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(super) enum Options {
    /// `1. Yes`, with a mark at the chosen one: the number answers.
    Numbered,
    /// Lines in a frame, the first one chosen: the arrow keys and Enter answer.
    Framed,
}

/// What a label says about an answer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KindRule {
    /// `allow_once`, `allow_always`, `reject_once` or `reject_always`.
    pub kind: String,
    /// The label begins with one of these.
    #[serde(default)]
    pub starts_with: Vec<String>,
    /// Or it holds one of these.
    #[serde(default)]
    pub contains: Vec<String>,
}

/// A question on the screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Question {
    /// Its first line.
    pub title: String,
    /// All of it above the answers, without what is drawn around it.
    pub text: String,
    /// The answers, from the first.
    pub answers: Vec<Answer>,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// As the box has it.
    pub label: String,
    /// See [`KindRule::kind`].
    pub kind: String,
    /// The keystrokes that give it.
    pub keys: String,
}

/// The question on a screen, if there is one.
pub(super) fn question(data: &PermissionBox, screen: &[String]) -> Option<Question> {
    let end = screen.iter().rposition(|line| !line.trim().is_empty())?;
    if !data.footers.iter().any(|footer| screen[end].contains(footer.as_str())) {
        return None;
    }
    let shown = &screen[end.saturating_sub(BOX_LINES)..end];
    let (first, labels) = match data.options {
        Options::Numbered => numbered(shown)?,
        Options::Framed => framed(shown)?,
    };
    let begins = |line: &String| data.starts.iter().any(|start| line.starts_with(start.as_str()));
    let start = shown[..first].iter().rposition(begins).unwrap_or(first.saturating_sub(TEXT_LINES));
    let asked = &shown[start..first];
    let holds = |line: &String| data.asks.iter().any(|ask| line.contains(ask.as_str()));
    if labels.len() < 2 || !(data.asks.is_empty() || asked.iter().any(holds)) {
        return None;
    }
    let drawn = |c: char| matches!(c, '─' | '━' | '╌' | '╭' | '╮' | '╰' | '╯' | '│' | ' ' | '\u{a0}');
    let lines: Vec<&str> = asked.iter().map(|line| line.trim_matches(drawn)).filter(|line| !line.is_empty()).collect();
    let mut answers: Vec<Answer> = Vec::new();
    for (index, label) in labels.into_iter().enumerate() {
        let kind = kind(data, &label);
        let rejects = kind.starts_with("reject");
        // No box is like this, so it was not understood, and its answers might be the opposite of what they seem.
        if !rejects && answers.last().is_some_and(|before| before.kind.starts_with("reject")) {
            return None;
        }
        let keys = match data.options {
            _ if rejects => data.reject.clone(),
            Options::Numbered => (index + 1).to_string(),
            Options::Framed => format!("{}\r", "\x1b[B".repeat(index)),
        };
        answers.push(Answer { label, kind, keys });
    }
    Some(Question { title: (*lines.first()?).to_owned(), text: lines.join("\n"), answers })
}

fn kind(data: &PermissionBox, label: &str) -> String {
    let fits = |rule: &&KindRule| {
        rule.starts_with.iter().any(|start| label.starts_with(start.as_str()))
            || rule.contains.iter().any(|part| label.contains(part.as_str()))
    };
    data.kinds.iter().find(fits).map_or_else(|| "allow_once".to_owned(), |rule| rule.kind.clone())
}

/// The list right above the footer, and the line where it begins. A label may quote what the model wrote, over several
/// lines: only a line whose number is in the column of the last one is an answer, and what is deeper goes on with it.
fn numbered(lines: &[String]) -> Option<(usize, Vec<String>)> {
    let (mut column, mut expected) = (None, None);
    let mut labels: Vec<String> = Vec::new();
    let mut rest: Vec<&str> = Vec::new();
    for (index, line) in lines.iter().enumerate().rev() {
        let Some(place) = line.chars().position(|c| !c.is_whitespace() && !MARKS.contains(&c)) else {
            // Blank lines are only below the list.
            if column.is_some() {
                return None;
            }
            continue;
        };
        let at = line.char_indices().nth(place).map_or(0, |(at, _)| at);
        let text = line[at..].trim_end();
        let item = text.split_once(". ").and_then(|(number, label)| Some((number.parse::<usize>().ok()?, label)));
        match item {
            Some((number, label)) if column.is_none_or(|column| column == place) => {
                if number == 0 || expected.is_some_and(|expected| expected != number) {
                    return None;
                }
                let mut label = columns(label);
                rest.drain(..).rev().for_each(|more| join(&mut label, more));
                labels.push(label);
                (column, expected) = (Some(place), Some(number - 1));
                if number == 1 {
                    labels.reverse();
                    return Some((index, labels));
                }
            }
            _ if column.is_none_or(|column| place > column) => rest.push(text),
            _ => return None,
        }
    }
    None
}

/// Some boxes have a label and its explanation side by side.
fn columns(label: &str) -> String {
    label.split("  ").map(str::trim).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" · ")
}

/// The lines of the last frame, and where it begins. What is not indented goes on with the line above.
fn framed(lines: &[String]) -> Option<(usize, Vec<String>)> {
    let bottom = lines.iter().rposition(|line| is_frame_bottom(line))?;
    let top = lines[..bottom].iter().rposition(|line| is_frame_top(line))?;
    let mut labels: Vec<String> = Vec::new();
    for line in &lines[top + 1..bottom] {
        let inside = line.trim().trim_start_matches('│').trim_end_matches('│');
        match labels.last_mut() {
            Some(last) if !inside.starts_with("  ") => join(last, inside.trim()),
            _ => labels.push(inside.trim().to_owned()),
        }
    }
    Some((top, labels))
}

/// Puts a label together again. A word that was too long for the line was cut without a space, which can't be seen.
fn join(label: &mut String, rest: &str) {
    label.push(' ');
    label.push_str(rest.trim());
}

#[cfg(test)]
#[path = "boxes_tests.rs"]
mod tests;
