//! Templates of policies: minijinja with fuel, strict about what is undefined. Fuel pays for instructions and for
//! every 64 bytes that a template makes, so it bounds time and memory both. Pure.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use minijinja::machinery::{Token, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Template, UndefinedBehavior};

use crate::facts::{Facts, NAMES};

/// Longest rendered text of one policy, in bytes.
pub const MAX_RENDERED_BYTES: usize = 64 * 1024;
/// Longest value of a variable of a policy's own, in characters.
pub const MAX_VARIABLE_CHARS: usize = 2048;
/// Enough for the longest text and a loop over a hundred tools; about 1.5 MB of memory.
const FUEL: u64 = 25_000;
/// Reading a template costs, too: one unit for so many bytes.
const BYTES_PER_FUEL: usize = 64;
/// Words and signs in one tag. The parser, the compiler and the destructors call themselves for every link of a chain
/// such as `-----x` or `x|e|e`, which no limit of theirs ends, and folding constants takes the square of its length.
const MAX_TOKENS_PER_TAG: usize = 512;
/// `elif` in one template: each is nested in the one before.
const MAX_ELIFS: usize = 256;
/// Stack that a template is worked on with, in bytes. The parser allows 150 calls within calls, of 14 KiB each (28 KiB in
/// a debug build); threads have 2 MiB.
const STACK: usize = 8 << 20;

static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    environment.set_fuel(Some(FUEL));
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    // It would show all variables, and nobody needs it.
    environment.remove_global("debug");
    environment
});

/// What is wrong with a template, with line and column: it does not parse, names a variable that will not be there, or
/// does not work out with example values.
pub fn check(template: &str, variables: &BTreeMap<String, String>) -> Result<(), String> {
    if let Some(taken) = variables.keys().find(|name| NAMES.contains(&name.as_str())) {
        return Err(format!("line 1, column 1: variables.{taken} would hide the platform's own {taken}; rename it"));
    }
    if let Some((name, _)) = variables.iter().find(|(_, value)| value.chars().nth(MAX_VARIABLE_CHARS).is_some()) {
        return Err(format!(
            "line 1, column 1: variables.{name} has more than {MAX_VARIABLE_CHARS} characters; put it into the template"
        ));
    }
    with_stack(|| checked(template, variables))
}

fn checked(template: &str, variables: &BTreeMap<String, String>) -> Result<(), String> {
    let parsed = parse(template)?;
    let known = |name: &str| {
        NAMES.contains(&name) || variables.contains_key(name) || ENVIRONMENT.globals().any(|(global, _)| global == name)
    };
    let mut unknown: Vec<String> = parsed.undeclared_variables(false).into_iter().filter(|name| !known(name)).collect();
    unknown.sort();
    if let Some(name) = unknown.first() {
        let (line, column) = first_use(template, name);
        let names = NAMES.join(", ");
        return Err(format!(
            "line {line}, column {column}: there is no variable {name}; declare it in variables, or use one of {names}"
        ));
    }
    work_out(template, &parsed, variables, &Facts::example()).map(drop)
}

/// The text of a template. The error has line and column.
pub fn render(template: &str, variables: &BTreeMap<String, String>, facts: &Facts) -> Result<String, String> {
    rendered(template, variables, facts).map(|(text, _)| text)
}

/// The same, and the fuel that it took.
pub(crate) fn rendered(
    template: &str,
    variables: &BTreeMap<String, String>,
    facts: &Facts,
) -> Result<(String, u64), String> {
    with_stack(|| work_out(template, &parse(template)?, variables, facts))
}

/// A tenant's template must not end the process that serves all tenants.
fn with_stack<T>(work: impl FnOnce() -> T) -> T {
    stacker::maybe_grow(STACK, STACK, work)
}

fn parse(template: &str) -> Result<Template<'_, '_>, String> {
    bounded(template)?;
    let environment: &Environment<'_> = &ENVIRONMENT;
    environment.template_from_named_str("template", template).map_err(|error| describe(&error, template))
}

/// What is no token at all is for the parser to name.
fn bounded(template: &str) -> Result<(), String> {
    let (mut in_tag, mut elifs) = (0, 0);
    for (token, span) in tokenize(template, false, SyntaxConfig::default()).map_while(Result::ok) {
        match token {
            Token::BlockStart | Token::VariableStart => in_tag = 0,
            Token::Ident("elif") if in_tag == 0 => elifs += 1,
            _ => in_tag += 1,
        }
        let what = if in_tag > MAX_TOKENS_PER_TAG {
            format!("the tag has more than {MAX_TOKENS_PER_TAG} words and signs; split it up with {{% set %}}")
        } else if elifs > MAX_ELIFS {
            format!("the template has more than {MAX_ELIFS} elif; use a variable of the policy, or fewer cases")
        } else {
            continue;
        };
        let (line, column) = position(template, span.start_offset as usize);
        return Err(format!("line {line}, column {column}: {what}"));
    }
    Ok(())
}

fn work_out(
    template: &str,
    parsed: &Template<'_, '_>,
    variables: &BTreeMap<String, String>,
    facts: &Facts,
) -> Result<(String, u64), String> {
    let captured = parsed.render_captured(facts.context(variables)).map_err(|error| describe(&error, template))?;
    let burnt = captured.state().fuel_levels().map_or(0, |(burnt, _)| burnt);
    let text = captured.into_output();
    if text.len() > MAX_RENDERED_BYTES {
        return Err(format!(
            "line 1, column 1: the text has {} bytes when it is rendered, and {MAX_RENDERED_BYTES} are allowed",
            text.len()
        ));
    }
    Ok((text, burnt + (template.len() / BYTES_PER_FUEL) as u64))
}

fn describe(error: &Error, template: &str) -> String {
    let what = match error.kind() {
        ErrorKind::OutOfFuel => "the template takes too long or makes too much text; make it simpler".to_owned(),
        kind => error.detail().map_or_else(|| kind.to_string(), str::to_owned),
    };
    let (line, column) = match error.range() {
        Some(range) => position(template, range.start),
        None => (error.line().unwrap_or(1), 1),
    };
    format!("line {line}, column {column}: {what}")
}

/// Where a variable stands first, as a word within markup if that can be told.
fn first_use(template: &str, name: &str) -> (usize, usize) {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let whole =
        |offset: &usize| !template[..*offset].ends_with(word) && !template[offset + name.len()..].starts_with(word);
    let in_markup = |offset: &usize| {
        let before = &template[..*offset];
        before.rfind("{{").max(before.rfind("{%")) > before.rfind("}}").max(before.rfind("%}"))
    };
    let mut uses = template.match_indices(name).map(|(offset, _)| offset).filter(whole);
    let place = uses.clone().find(in_markup).or_else(|| uses.next());
    position(template, place.unwrap_or_default())
}

/// Line and column, counted from 1 in characters.
fn position(template: &str, offset: usize) -> (usize, usize) {
    let before = template.get(..offset).unwrap_or(template);
    let line = before.matches('\n').count() + 1;
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (line, before[start..].chars().count() + 1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn none() -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    fn problem(template: &str) -> String {
        check(template, &none()).unwrap_err()
    }

    #[test]
    fn a_bad_template_is_named_by_line_and_column() {
        let seen = problem("You are kind.\nÄrger: {{ user.name | }}\n");
        assert!(seen.starts_with("line 2, column "), "{seen}");
        let column: usize = seen.split("column ").nth(1).unwrap().split(':').next().unwrap().parse().unwrap();
        assert!((9..=24).contains(&column), "{seen}");
        assert!(problem("{% if user %}never closed").starts_with("line 1, column "));
    }

    #[test]
    fn good_templates_are_good() {
        let own = BTreeMap::from([("team".to_owned(), "core".to_owned())]);
        for good in [
            "Hello {{ user }}{% for t in tools %}\n- {{ t }} {{ loop.index }}{% endfor %}",
            "no markup at all",
            "{% if agent == 'claude' and tools %}{{ organization | upper }}/{{ workspace }} on {{ date }}{% endif %}",
            "{% set greeting = 'Hi ' ~ user %}{{ greeting }}, {{ team }}",
            "{% for i in range(3) %}{{ i }}{% endfor %}",
        ] {
            assert_eq!(check(good, &own), Ok(()), "{good}");
        }
    }

    #[test]
    fn a_variable_that_will_not_be_there_is_found_before_it_is_missed() {
        let seen = problem("Be kind.\n{% if date == 'never' %}{{ projekt }}{% endif %}");
        assert!(seen.starts_with("line 2, column 28: there is no variable projekt"), "{seen}");
        assert!(seen.contains("organization, workspace, user"), "{seen}");
        // The word in the text is not the variable.
        assert!(problem("team? {{ team }}").starts_with("line 1, column 10: "), "{}", problem("team? {{ team }}"));
        assert!(problem("{{ user.email }}").starts_with("line 1, column "), "an attribute that is not there");
        assert!(problem("{{ debug() }}").contains("no variable debug"));
    }

    #[test]
    fn the_platforms_own_variables_can_not_be_hidden() {
        let own = BTreeMap::from([("user".to_owned(), "root".to_owned())]);
        assert!(check("{{ user }}", &own).unwrap_err().contains("variables.user"));
        assert_eq!(render("{{ user }}", &own, &Facts::example()), Ok("alice@example.com".to_owned()));
    }

    #[test]
    fn no_template_takes_long_or_much() {
        let double = "{% set a = 'aaaaaaaaaaaaaaaa' %}".to_owned() + &"{% set a = a ~ a %}".repeat(40) + "{{ a }}";
        for greedy in [
            double.as_str(),
            "{{ 'x' * 1000000000 }}",
            "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}",
            "{{ ('a' * 1000) | replace('a', 'b' * 1000) }}{{ 'x' | indent(1000000000) }}",
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        ] {
            assert!(check(greedy, &none()).is_err(), "{greedy}");
        }
        let long = BTreeMap::from([("own".to_owned(), "ä".repeat(MAX_VARIABLE_CHARS + 1))]);
        assert!(check("x", &long).unwrap_err().contains("variables.own has more than 2048"));
        assert!(problem(&"x".repeat(MAX_RENDERED_BYTES + 1)).contains("are allowed"));
        assert_eq!(check(&"x".repeat(MAX_RENDERED_BYTES), &none()), Ok(()));
    }

    /// A policy may have 64 KiB, and threads of the operator and the runtime have a stack of 2 MiB.
    #[test]
    fn no_chain_or_nesting_overflows_the_stack_or_takes_long() {
        let chain = |open: &str, link: &str, close: &str, links: usize| {
            check(&format!("{open}{}{close}", link.repeat(links)), &none())
        };
        for (open, link, close) in [
            ("{{ ", "-", "user }}"),
            ("{{ ", "not ", "user }}"),
            ("{{ user", "|e", " }}"),
            ("{{ user", ".a", " }}"),
            ("{{ user", "[0]", " }}"),
            ("{{ user", "()", " }}"),
            ("{{ user", "~1", " }}"),
            ("{{ 1", "+1", " }}"),
            ("{{ 1", "**1", " }}"),
            ("{{ user", " and user", " }}"),
            ("{{ user", " if user", " }}"),
            ("{{ user", " is odd", " }}"),
            ("{% if user %}", "{% elif user %}", "{% endif %}"),
            ("{% for ", "(", " in tools %}"),
            ("{% call ", "f(", " %}"),
            ("{# {{ ' #}{{ '}} '", "|e", " }}"),
            ("{% raw %}{{ '{% endraw %}{{ user", "|e", " }}"),
        ] {
            let problem = chain(open, link, close, (64 << 10) / link.len()).unwrap_err();
            assert!(problem.contains("has more than"), "{open}{link}: {problem}");
            let most = if link.contains("elif") { MAX_ELIFS } else { MAX_TOKENS_PER_TAG / 3 };
            let allowed = chain(open, link, close, most);
            assert!(!allowed.is_err_and(|problem| problem.contains("has more than")), "{open}{link}");
        }
        let nested = |open: &str, close: &str, levels: usize| {
            check(&format!("{{{{ {}1{} }}}}", open.repeat(levels), close.repeat(levels)), &none())
        };
        for (open, close) in [("range(", ")"), ("(", ")"), ("[", "]"), ("{1:", "}")] {
            for levels in [70, 100, 148, 150, 250] {
                let _ = nested(open, close, levels);
            }
        }
        let _ = check(&"{% if user %}".repeat(5000), &none());
        let tuples = format!("{{% for {}a{} in tools %}}{{% endfor %}}", "(".repeat(170), ",)".repeat(170));
        let _ = check(&tuples, &none());
        // Text is no tag, however long.
        assert_eq!(check(&"if a | b, then - c elif ".repeat(2000), &none()), Ok(()));
    }

    #[test]
    fn nothing_else_is_read_or_included() {
        for reaching in ["{% include '/etc/passwd' %}", "{% extends 'base' %}", "{% import 'x' as y %}{{ y }}"] {
            assert!(check(reaching, &none()).is_err(), "{reaching}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_check_fail_itself(template in "(\\PC|[{}%|\n]){0,200}") {
            let _ = check(&template, &none());
        }

        #[test]
        fn what_was_checked_renders_for_everybody(user in "\\PC{0,40}", tools in prop::collection::vec("[a-z]{1,8}", 0..20)) {
            let template = "{{ user }} of {{ organization }}{% for t in tools %}\n- {{ t }}{% endfor %}";
            prop_assert_eq!(check(template, &none()), Ok(()));
            let facts = Facts::new("acme", "web", &user, "claude", "2026-11-26", &tools);
            prop_assert!(render(template, &none(), &facts).is_ok());
        }
    }
}
