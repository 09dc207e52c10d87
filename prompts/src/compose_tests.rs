#![allow(clippy::unwrap_used)]
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// `Scope namespace/name priority locked?`, and the name as its text.
fn policy(scope: Scope, name: &str, priority: i32, locked: bool) -> Policy {
    let namespace = match scope {
        Scope::Global => "agentapi-system",
        Scope::Organization => "team-acme",
        _ => "team-web",
    };
    Policy {
        id: 1,
        scope,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        generation: 7,
        priority,
        locked,
        template: format!("{} says {name}", scope.as_str()),
        variables: BTreeMap::new(),
        mode: Mode::Detect,
    }
}

fn text(policies: &[Policy]) -> String {
    compose(policies, &Facts::example()).unwrap().text
}

const LOCKED: bool = true;
const OPEN: bool = false;

#[test]
fn scopes_come_in_their_order_and_priority_counts_within_one() {
    let policies = [
        policy(Scope::Workspace, "a", 1000, OPEN),
        policy(Scope::Organization, "low", -5, OPEN),
        policy(Scope::Organization, "high", 5, OPEN),
        policy(Scope::Organization, "also-high", 5, OPEN),
        policy(Scope::Global, "g", -1000, OPEN),
    ];
    assert_eq!(
        text(&policies),
        "Global says g\n\nOrganization says also-high\n\nOrganization says high\n\nOrganization says low\n\n\
         Workspace says a"
    );
}

#[test]
fn a_lower_scope_takes_the_place_of_a_section_that_is_open_and_never_of_a_locked_one() {
    let open = [policy(Scope::Global, "style", 0, OPEN), policy(Scope::Workspace, "style", 0, OPEN)];
    let composed = compose(&open, &Facts::example()).unwrap();
    assert_eq!(composed.text, "Workspace says style");
    assert_eq!(composed.left_out[0].reason, "overridden by the Workspace policy team-web/style, generation 7");

    let locked = [
        policy(Scope::Workspace, "style", 1000, LOCKED),
        policy(Scope::Organization, "style", 0, LOCKED),
        policy(Scope::Global, "style", 0, OPEN),
    ];
    let composed = compose(&locked, &Facts::example()).unwrap();
    assert_eq!(composed.text, "Organization says style", "neither what is below it nor what it replaced");
    let reasons: Vec<_> = composed.left_out.iter().map(|it| (it.source.scope, it.reason.as_str())).collect();
    assert_eq!(
        reasons,
        [
            (Scope::Global, "overridden by the Organization policy team-acme/style, generation 7"),
            (Scope::Workspace, "shadowed: the locked Organization policy team-acme/style has this name"),
        ]
    );
}

#[test]
fn two_of_one_name_in_one_scope_are_both_used_and_one_lock_is_enough() {
    let mut other = policy(Scope::Organization, "style", 3, LOCKED);
    other.namespace = "team-z".to_owned();
    other.template = "second".to_owned();
    let policies = [other, policy(Scope::Organization, "style", 9, OPEN), policy(Scope::Workspace, "style", 0, OPEN)];
    assert_eq!(text(&policies), "Organization says style\n\nsecond");
}

#[test]
fn a_lower_scopes_variables_do_not_reach_into_a_higher_ones_text() {
    let mut house = policy(Scope::Global, "house", 0, LOCKED);
    house.template = "Never touch {{ area }} of {{ organization }}.".to_owned();
    house.variables = BTreeMap::from([("area".to_owned(), "production".to_owned())]);
    let mut lower = policy(Scope::Workspace, "mine", 0, OPEN);
    lower.template = "{% set organization = 'evil' %}{% set area = 'nothing' %}I set {{ area }}.".to_owned();
    lower.variables = BTreeMap::from([("area".to_owned(), "nothing".to_owned())]);
    assert_eq!(text(&[house, lower]), "Never touch production of acme.\n\nI set nothing.");
}

#[test]
fn every_line_says_where_it_comes_from() {
    let mut long = policy(Scope::Global, "g", 0, LOCKED);
    long.template = "one\n\nthree {{ agent }}\n\n\n".to_owned();
    let mut blank = policy(Scope::Organization, "blank", 0, OPEN);
    blank.template = "{% if agent == 'codex' %}only for codex{% endif %}\n".to_owned();
    let composed = compose(&[long, blank, policy(Scope::Workspace, "w", 0, OPEN)], &Facts::example()).unwrap();
    let lines: Vec<String> = composed.lines().map(|(line, source)| format!("{source}: {line}")).collect();
    assert_eq!(
        lines,
        [
            "agentapi-system/g: one",
            "agentapi-system/g: ",
            "agentapi-system/g: three claude",
            "agentapi-system/g: ",
            "team-web/w: Workspace says w",
        ]
    );
    assert_eq!(composed.left_out[0].reason, "its text is empty for this session");
    assert_eq!(compose(&[], &Facts::example()).unwrap().lines().count(), 0);
}

#[test]
fn the_strictest_mode_of_what_is_used_counts() {
    let mut strict = policy(Scope::Global, "a", 0, OPEN);
    strict.mode = Mode::Redact;
    let lax = policy(Scope::Workspace, "b", 0, OPEN);
    assert_eq!(compose(&[strict.clone(), lax], &Facts::example()).unwrap().mode, Mode::Redact);
    let replaced = policy(Scope::Workspace, "a", 0, OPEN);
    assert_eq!(compose(&[strict, replaced], &Facts::example()).unwrap().mode, Mode::Detect);
}

#[test]
fn a_template_that_fails_names_its_policy_and_too_much_is_refused() {
    let mut bad = policy(Scope::Workspace, "w", 0, OPEN);
    bad.template = "fine\n{{ missing }}".to_owned();
    let error = compose(&[bad], &Facts::example()).unwrap_err().to_string();
    assert!(error.starts_with("PromptPolicy team-web/w (generation 7): line 2, column "), "{error}");
    let long = |name: &str| {
        let mut long = policy(Scope::Global, name, 0, OPEN);
        long.template = "x".repeat(60_000);
        long
    };
    let error = compose(&[long("a"), long("b"), long("c")], &Facts::example()).unwrap_err();
    assert!(matches!(error, ComposeError::TooLong { bytes } if bytes > MAX_BYTES), "{error}");
}

#[test]
fn the_digest_is_of_the_text_alone() {
    let one = compose(&[policy(Scope::Global, "g", 0, OPEN)], &Facts::example()).unwrap();
    let same = compose(&[policy(Scope::Global, "g", 5, LOCKED)], &Facts::example()).unwrap();
    assert_eq!(one.digest, same.digest);
    assert_eq!(one.digest, digest("Global says g"));
    assert_eq!(compose(&[], &Facts::default()).unwrap().digest, digest(""));
}

fn some_policy() -> impl Strategy<Value = Policy> {
    let scope = prop_oneof![Just(Scope::Global), Just(Scope::Organization), Just(Scope::Workspace)];
    (scope, "[ab]", -3..4_i32, any::<bool>(), 0..3_u8, "[a-c\n ]{0,12}").prop_map(
        |(scope, name, priority, locked, namespace, text)| {
            let mut made = policy(scope, &name, priority, locked);
            made.namespace = format!("ns-{namespace}");
            made.template = text;
            made
        },
    )
}

proptest! {
    /// Whatever lower scopes say, what the locked ones say is in the text, once, as it would be without them.
    #[test]
    fn nothing_below_changes_a_locked_section(policies in prop::collection::vec(some_policy(), 0..8)) {
        let composed = compose(&policies, &Facts::example()).unwrap();
        for policy in policies.iter().filter(|policy| policy.locked) {
            let above = policies.iter().any(|other| {
                other.locked && other.name == policy.name && other.scope < policy.scope
            });
            let text = policy.template.trim_matches(['\n', ' ']);
            if above || text.is_empty() {
                continue;
            }
            let used = composed.sections.iter().filter(|section| {
                (section.source.scope, &section.source.namespace, &section.source.name)
                    == (policy.scope, &policy.namespace, &policy.name)
            });
            prop_assert!(used.count() >= 1);
            prop_assert!(composed.text.contains(text));
        }
        // Every policy is in the text or left out, and every line has a source.
        prop_assert_eq!(composed.sections.len() + composed.left_out.len(), policies.len());
        let lines = if composed.text.is_empty() { 0 } else { composed.text.split('\n').count() };
        prop_assert_eq!(composed.lines().count(), lines);
        // The order in which they were read does not matter.
        let mut other = policies.clone();
        other.reverse();
        let unique: std::collections::HashSet<_> =
            policies.iter().map(|p| (p.scope, p.priority, &p.namespace, &p.name)).collect();
        if unique.len() == policies.len() {
            prop_assert_eq!(compose(&other, &Facts::example()).unwrap().text, composed.text);
        }
    }
}

#[test]
fn many_templates_that_compute_much_are_too_much_together() {
    let greedy = "{% for i in range(900) %}{% for j in range(6) %}{% endfor %}{% endfor %}";
    let of = |n: u32, template: &str| Policy {
        template: template.to_owned(),
        ..policy(Scope::Organization, &format!("p{n}"), 0, false)
    };
    let policies: Vec<Policy> = (0..20).map(|n| of(n, greedy)).collect();
    assert!(compose(&policies[..1], &Facts::example()).is_ok(), "each of them is allowed");
    let error = compose(&policies, &Facts::example()).unwrap_err();
    assert!(matches!(&error, ComposeError::TooSlow { .. }), "{error}");
    assert!(error.to_string().contains("use fewer"), "{error}");
    // Fifty long ones that say something are not.
    let plain = "{{ user }} writes tests first. ".repeat(60);
    let policies: Vec<Policy> = (0..50).map(|n| of(n, &plain)).collect();
    assert!(compose(&policies, &Facts::example()).is_ok());
}
