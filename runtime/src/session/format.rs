//! From lines of a screen to the text of a message. Pure functions over an agent's data.

use std::collections::HashMap;

use super::{
    agents::{AgentProfile, InputBox},
    boxes,
};

/// A rule is at least this many horizontal bars in a row.
const RULE_BARS: usize = 15;
/// The input box and its status lines are within this many lines of the bottom.
const BOX_LINES: usize = 40;
/// Status lines below the box.
const FOOTER_LINES: usize = 12;
/// Without a box, the status is in these last lines.
const UNBOXED_STATUS_LINES: usize = 6;
/// Letters of the input that an agent may leave out between two lines of its echo (the fences of a code block).
const ECHO_SKIP: usize = 40;
/// Echoed input starts within this many non-blank lines.
const ECHO_LINES: usize = 6;
/// What agents draw around the words they repeat.
const DECORATION: &[char] = &['│', '┃', '▌', '|', '>', '❯', '›', '»', '$', ' ', '\t', '\u{a0}'];

/// The part of the screen that belongs to the conversation: no input box, no spinners, no blank lines at the end.
pub(super) fn body(profile: &AgentProfile, lines: &[String]) -> Vec<String> {
    let end = box_start(profile, lines).unwrap_or(lines.len());
    let mut body: Vec<String> =
        lines.iter().take(end).filter(|line| !is_noise(profile, line)).map(|line| line.trim_end().to_owned()).collect();
    while body.last().is_some_and(String::is_empty) {
        body.pop();
    }
    body
}

/// What a screen says about its agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// It works.
    Working,
    /// It waits for a message.
    Waiting,
    /// Neither: it starts, or asks something that is no message.
    Other,
}

/// What a screen says about its agent.
pub(super) fn look(profile: &AgentProfile, screen: &[String]) -> Look {
    // A box of another kind may look like the one for messages.
    let asks = profile.permission.as_ref().is_some_and(|data| boxes::question(data, screen).is_some());
    if asks {
        Look::Other
    } else if is_working(profile, screen) {
        Look::Working
    } else if is_waiting(profile, screen) {
        Look::Waiting
    } else {
        Look::Other
    }
}

fn is_working(profile: &AgentProfile, screen: &[String]) -> bool {
    // Only where the agent shows its state: the words may also be part of a reply.
    let start = box_start(profile, screen).unwrap_or_else(|| screen.len().saturating_sub(UNBOXED_STATUS_LINES));
    let status = &screen[start.saturating_sub(profile.ready.rows_above_box)..];
    status.iter().any(|line| profile.ready.none.iter().any(|marker| line.contains(marker.as_str())))
}

fn is_waiting(profile: &AgentProfile, screen: &[String]) -> bool {
    let bottom = &screen[screen.len().saturating_sub(BOX_LINES)..];
    if !profile.ready.any.is_empty() {
        return bottom.iter().any(|line| profile.ready.any.iter().any(|marker| line.contains(marker.as_str())));
    }
    if profile.input_box.is_empty() || profile.any_screen_is_ready {
        return screen.iter().any(|line| !line.is_empty());
    }
    box_start(profile, screen).is_some()
}

/// The agent's message: what `lines` hold that `before` (a [`body`]) did not.
pub(super) fn reply(profile: &AgentProfile, before: &[String], lines: &[String], user_input: &str) -> String {
    let body = body(profile, lines);
    let start = echo_start(profile, before, &body, user_input)
        .unwrap_or_else(|| first_new_line(before, &body, profile.dynamic_header_rows));
    let section = &body[start.min(body.len())..];
    trim_blank(strip_echo(profile, section, user_input)).join("\n")
}

/// Index of the first line of `body` that was not on the screen before. Lines are counted, so that a reply
/// equal to an earlier one is still new.
fn first_new_line(before: &[String], body: &[String], header_rows: usize) -> usize {
    let mut known: HashMap<&str, usize> = HashMap::new();
    for line in before {
        *known.entry(line.as_str()).or_default() += 1;
    }
    let header = if before.is_empty() { 0 } else { header_rows };
    for (index, line) in body.iter().enumerate() {
        if line.is_empty() {
            continue;
        }
        match known.get_mut(line.as_str()) {
            Some(count) if *count > 0 => *count -= 1,
            _ if index < header => {}
            _ => return index,
        }
    }
    body.len()
}

/// Where the agent repeats the user's words, once more often than before: a better start than the first new line,
/// because agents rewrite earlier lines (collapsed tool output, tips).
fn echo_start(profile: &AgentProfile, before: &[String], body: &[String], user_input: &str) -> Option<usize> {
    if profile.echo_prefixes.is_empty() || user_input.is_empty() {
        return None;
    }
    let is_echo = |lines: &[String], index: usize| {
        let line = lines[index].trim_start();
        profile.echo_prefixes.iter().any(|prefix| line.starts_with(prefix.as_str()))
            && echo_length(profile, &lines[index..], user_input) > 0
    };
    let earlier = (0..before.len()).filter(|index| is_echo(before, *index)).count();
    (0..body.len()).filter(|index| is_echo(body, *index)).nth(earlier)
}

/// Removes the repeated input from the start of a section.
fn strip_echo<'a>(profile: &AgentProfile, section: &'a [String], user_input: &str) -> &'a [String] {
    if user_input.is_empty() {
        return section;
    }
    let mut seen = 0;
    for (index, line) in section.iter().enumerate() {
        if line.is_empty() {
            continue;
        }
        let length = echo_length(profile, &section[index..], user_input);
        if length > 0 {
            // The rest of the frame that some agents draw around the echo.
            let mut end = index + length;
            while section.get(end).is_some_and(|line| is_frame_bottom(line)) {
                end += 1;
            }
            return &section[end..];
        }
        seen += 1;
        if seen == ECHO_LINES {
            break;
        }
    }
    section
}

/// How many lines, from the first one on, repeat the user's input. 0 when they do not. Agents wrap what they
/// repeat, indent it, draw frames and lists around it: only letters and digits are compared.
fn echo_length(profile: &AgentProfile, lines: &[String], user_input: &str) -> usize {
    let letters = |text: &str| text.chars().filter(|c| c.is_alphanumeric()).collect::<String>();
    let wanted = letters(user_input);
    if wanted.is_empty() {
        let same = lines.first().is_some_and(|line| undecorated(line) == undecorated(user_input));
        return usize::from(same);
    }
    let mut rest = wanted.as_str();
    let mut length = 0;
    for (index, line) in lines.iter().enumerate() {
        if rest.is_empty() {
            break;
        }
        if profile.paste_placeholders.iter().any(|placeholder| line.contains(placeholder.as_str())) {
            // The placeholder stands for the rest of the input.
            return index + 1;
        }
        let line = letters(line);
        if line.is_empty() {
            // Blank, or only drawing; part of the echo when the next line is.
            continue;
        }
        let skip = if index == 0 { 0 } else { ECHO_SKIP };
        match rest.find(&line).filter(|place| rest[..*place].chars().count() <= skip) {
            Some(place) => {
                rest = &rest[place + line.len()..];
                length = index + 1;
            }
            None => break,
        }
    }
    // The first line must be there as a whole, or as much of it as fits on a row.
    let first_line = letters(user_input.trim_start().lines().next().unwrap_or_default());
    let matched = wanted.len() - rest.len();
    if matched >= first_line.len().min(ECHO_SKIP) { length } else { 0 }
}

fn undecorated(line: &str) -> &str {
    line.trim_matches(DECORATION)
}

pub(super) fn is_frame_bottom(line: &str) -> bool {
    let line = line.trim();
    (line.starts_with('╰') || line.starts_with('└')) && (line.ends_with('╯') || line.ends_with('┘'))
}

pub(super) fn is_frame_top(line: &str) -> bool {
    let line = line.trim();
    (line.starts_with('╭') || line.starts_with('┌')) && (line.ends_with('╮') || line.ends_with('┐'))
}

fn is_rule(line: &str) -> bool {
    let mut run = 0;
    line.chars().any(|c| {
        run = if matches!(c, '─' | '━' | '▀' | '▄') { run + 1 } else { 0 };
        run >= RULE_BARS
    })
}

fn is_noise(profile: &AgentProfile, line: &str) -> bool {
    let line = line.trim_end();
    !line.is_empty()
        && profile.noise.iter().any(|noise| {
            (noise.starts_with.is_empty() || noise.starts_with.iter().any(|start| line.starts_with(start.as_str())))
                && noise.contains.iter().all(|part| line.contains(part.as_str()))
                && noise.ends_with.as_ref().is_none_or(|end| line.ends_with(end.as_str()))
        })
}

/// Line at which the input box starts.
fn box_start(profile: &AgentProfile, lines: &[String]) -> Option<usize> {
    let end = lines.iter().rposition(|line| !line.trim().is_empty())? + 1;
    let lines = &lines[..end];
    profile.input_box.iter().find_map(|shape| match shape {
        InputBox::Rules { prompts } => rules_start(lines, prompts),
        InputBox::Frame { contains } => frame_start(lines, contains),
        InputBox::Prompt { prompts, footer } => prompt_start(lines, prompts, *footer),
        InputBox::Bar { bar } => bar_start(lines, bar),
    })
}

fn rules_start(lines: &[String], prompts: &[String]) -> Option<usize> {
    let bottom = lines.iter().rposition(|line| is_rule(line))?;
    if lines.len() - bottom > FOOTER_LINES {
        return None;
    }
    let top = lines[..bottom].iter().rposition(|line| is_rule(line))?;
    let first = lines.get(top + 1)?.trim_start();
    (bottom - top <= BOX_LINES && prompts.iter().any(|prompt| first.starts_with(prompt.as_str()))).then_some(top)
}

fn frame_start(lines: &[String], contains: &[String]) -> Option<usize> {
    let bottom = lines.iter().rposition(|line| is_frame_bottom(line))?;
    if lines.len() - bottom > FOOTER_LINES {
        return None;
    }
    let top = lines[..bottom].iter().rposition(|line| is_frame_top(line))?;
    let inside = &lines[top..bottom];
    let holds = contains.is_empty() || inside.iter().any(|line| contains.iter().any(|part| line.contains(part)));
    (bottom - top <= BOX_LINES && holds).then_some(top)
}

fn prompt_start(lines: &[String], prompts: &[String], footer: usize) -> Option<usize> {
    let is_prompt = |line: &String| {
        let line = line.trim_start();
        prompts.iter().any(|prompt| line.starts_with(prompt.as_str()) || line == prompt.trim_end())
    };
    let mut below = 0;
    for (index, line) in lines.iter().enumerate().rev() {
        if is_prompt(line) {
            // A rule right above the prompt is part of the box.
            return Some(if index > 0 && is_rule(&lines[index - 1]) { index - 1 } else { index });
        }
        if !line.trim().is_empty() {
            below += 1;
        }
        if below > footer {
            return None;
        }
    }
    None
}

fn bar_start(lines: &[String], bar: &str) -> Option<usize> {
    let is_bar = |line: &String| line.trim_start().starts_with(bar);
    let last = lines.iter().rposition(is_bar)?;
    if lines.len() - last > FOOTER_LINES {
        return None;
    }
    Some(lines[..last].iter().rposition(|line| !is_bar(line)).map_or(0, |index| index + 1))
}

fn trim_blank(lines: &[String]) -> &[String] {
    let Some(first) = lines.iter().position(|line| !line.trim().is_empty()) else { return &[] };
    let last = lines.iter().rposition(|line| !line.trim().is_empty()).unwrap_or(first);
    &lines[first..=last]
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
