//! Parsing a policy's template. Pure.
use minijinja::{Environment, Error};

/// What is wrong with a template, with line and column.
pub fn check(template: &str) -> Result<(), String> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(10_000));
    environment.template_from_named_str("template", template).map(|_| ()).map_err(|error| describe(&error, template))
}

fn describe(error: &Error, template: &str) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    let (line, column) = match error.range() {
        Some(range) => position(template, range.start),
        None => (error.line().unwrap_or(1), 1),
    };
    format!("line {line}, column {column}: {what}")
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

    #[test]
    fn a_bad_template_is_named_by_line_and_column() {
        let problem = check("You are kind.\nÄrger: {{ user.name | }}\n").unwrap_err();
        assert!(problem.starts_with("line 2, column "), "{problem}");
        let column: usize = problem.split("column ").nth(1).unwrap().split(':').next().unwrap().parse().unwrap();
        assert!((9..=24).contains(&column), "{problem}");
        assert!(check("{% if x %}never closed").unwrap_err().starts_with("line 1, column "));
    }

    #[test]
    fn good_templates_are_good() {
        assert_eq!(check("Hello {{ user }}{% for t in tools %}\n- {{ t }}{% endfor %}"), Ok(()));
        assert_eq!(check("no markup at all"), Ok(()));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_check_fail_itself(template in "(\\PC|[{}%|\n]){0,200}") {
            let _ = check(&template);
        }
    }
}
