//! What agents call the tools of their MCP servers: the names of the servers are chosen here, and each agent makes names of
//! tools from them in its own way, which is in its data file. Pure. A prompt that lists tools uses it too.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::agents::profile;

/// Of an agent of which nothing else is known; most do it like this.
pub(super) const COMMON: &str = "mcp__{{server}}__{{tool}}";

/// Names of the servers behind these connections, which are ids and names, in their order.
pub(super) fn servers<'a>(connections: impl IntoIterator<Item = (Uuid, &'a str)>) -> Vec<String> {
    let mut taken = BTreeSet::new();
    let mut server = |(id, name): (Uuid, &str)| {
        let plain = plain(name);
        // Two namespaces of an organization may use one name.
        let server = if taken.contains(&plain) { format!("{plain}-{}", id.simple()) } else { plain };
        taken.insert(server.clone());
        server
    };
    connections.into_iter().map(&mut server).collect()
}

/// The tools of these connections, which are ids, names and names of tools at the server, as an agent of this type calls
/// them.
pub fn names(agent: &str, connections: &[(Uuid, String, Vec<String>)]) -> Vec<String> {
    let pattern = profile(agent).map_or_else(|_| COMMON.to_owned(), |profile| profile.mcp.tool_name);
    let servers = servers(connections.iter().map(|(id, name, _)| (*id, name.as_str())));
    let tools =
        servers.iter().zip(connections).flat_map(|(server, (.., tools))| tools.iter().map(move |it| (server, it)));
    tools.map(|(server, tool)| pattern.replace("{{server}}", server).replace("{{tool}}", &plain(tool))).collect()
}

/// Models take no other characters in names of tools.
fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_agent_has_its_own_names() {
        let offered = |number, name: &str, tools: &[&str]| {
            (Uuid::from_u128(number), name.to_owned(), tools.iter().map(|&tool| tool.to_owned()).collect())
        };
        let all = [
            offered(1, "github", &["search", "get.issue"]),
            offered(2, "my tracker", &[]),
            offered(3, "github", &["x"]),
        ];
        let again = format!("github-{}", Uuid::from_u128(3).simple());
        let common =
            ["mcp__github__search".to_owned(), "mcp__github__get_issue".to_owned(), format!("mcp__{again}__x")];
        for agent in ["claude", "codex", "custom", "unheard-of"] {
            assert_eq!(names(agent, &all), common, "{agent}");
        }
        let droid = ["github___search".to_owned(), "github___get_issue".to_owned(), format!("{again}___x")];
        assert_eq!(names("droid", &all), droid);
    }
}
