//! Is the connection accepted, and what does Postgres have to know of it? Pure.
use crate::{
    controllers::reference::{self, Refusal, Tenancy},
    records::ConnectionRow,
};
use agentapi_crds::{McpConnection, Workspace, conditions::reason, mcp_connection::McpTransport};
use kube::ResourceExt;
use serde_json::json;
use url::Url;
use uuid::Uuid;

/// An accepted connection.
#[derive(Clone, Debug, PartialEq)]
pub struct Accepted {
    /// What Postgres has to know of it.
    pub row: ConnectionRow,
    /// The Organization.
    pub tenancy: Tenancy,
}

/// The row of an accepted connection. The CRD's rules keep most mistakes out; a server without them does not.
pub fn validate<'a>(
    connection: &McpConnection,
    tenancy: Result<Tenancy, Refusal>,
    workspace: Option<&Workspace>,
    others: impl IntoIterator<Item = &'a McpConnection>,
) -> Result<Accepted, Refusal> {
    let tenancy = tenancy?;
    // Before anything that waits: who waits is accepted, and one that was refused would get a place by waiting.
    if connection.spec.transport.stdio.is_some() {
        has_a_place(connection, &tenancy, others)?;
    }
    let tenancy = tenancy.in_postgres()?;
    let invalid = |message: &str| Refusal::new(reason::INVALID, message);
    let id = connection
        .uid()
        .and_then(|uid| Uuid::parse_str(&uid).ok())
        .ok_or_else(|| invalid("metadata.uid is not a UUID; the API server sets it"))?;
    let transport = transport(&connection.spec.transport)?;
    let workspace = match (&connection.spec.workspace_ref, workspace) {
        (None, _) => None,
        (Some(reference), None) => {
            return Err(Refusal::new(
                reason::WORKSPACE_NOT_FOUND,
                format!(
                    "there is no Workspace {:?} in this namespace; create it or correct workspaceRef",
                    reference.name
                ),
            ));
        }
        (Some(_), Some(workspace)) => Some(workspace_id(workspace, &tenancy)?),
    };
    let row = ConnectionRow {
        id,
        organization: tenancy.id,
        workspace,
        name: connection.name_any(),
        namespace: connection.namespace().unwrap_or_default(),
        transport,
        spec: serde_json::to_value(&connection.spec).unwrap_or_else(|_| json!({})),
        generation: connection.metadata.generation.unwrap_or_default(),
    };
    Ok(Accepted { row, tenancy })
}

/// A program runs in the tenant namespace, under the connection's name and at the tenant's expense.
fn has_a_place<'a>(
    connection: &McpConnection,
    tenancy: &Tenancy,
    others: impl IntoIterator<Item = &'a McpConnection>,
) -> Result<(), Refusal> {
    let before: Vec<&McpConnection> = others
        .into_iter()
        .filter(|other| {
            other.spec.organization_ref == connection.spec.organization_ref
                && other.spec.transport.stdio.is_some()
                && reference::precedes(*other, connection, is_accepted)
        })
        .collect();
    let slug = &tenancy.slug;
    if before.iter().any(|other| other.name_any() == connection.name_any()) {
        let message = format!(
            "Organization {slug:?} has a stdio McpConnection {:?} already; choose another name",
            connection.name_any()
        );
        return Err(Refusal::new(reason::NAME_CONFLICT, message));
    }
    if before.len() >= tenancy.mcp_servers {
        let message = format!(
            "Organization {slug:?} may have {} stdio McpConnections and has them; delete one or raise \
             spec.quota.mcpServers of the Organization",
            tenancy.mcp_servers
        );
        return Err(Refusal::new(reason::QUOTA_EXCEEDED, message));
    }
    Ok(())
}

/// Refused ones take no place: anybody can make one.
pub(crate) fn is_accepted(connection: &McpConnection) -> bool {
    reference::is_accepted(connection, connection.status.as_ref().map(|status| &status.conditions))
}

/// A Workspace that may be referred to: of the same organization and itself in place.
pub(crate) fn workspace_id(workspace: &Workspace, tenancy: &Tenancy) -> Result<Uuid, Refusal> {
    let name = workspace.name_any();
    if workspace.spec.organization_ref.name != tenancy.slug {
        return Err(Refusal::new(
            reason::WORKSPACE_NOT_FOUND,
            format!("Workspace {name:?} belongs to another Organization than {:?}", tenancy.slug),
        ));
    }
    let id = workspace.status.as_ref().and_then(|status| status.workspace_id.as_deref());
    id.and_then(|id| Uuid::parse_str(id).ok())
        .ok_or_else(|| Refusal::new(reason::PROGRESSING, format!("waits for Workspace {name:?} to be in place")))
}

fn transport(transport: &McpTransport) -> Result<&'static str, Refusal> {
    let (name, url) = match (&transport.streamable_http, &transport.sse, &transport.stdio) {
        (Some(http), None, None) => ("streamableHttp", Some(&http.url)),
        (None, Some(http), None) => ("sse", Some(&http.url)),
        (None, None, Some(_)) => ("stdio", None),
        _ => {
            return Err(Refusal::new(reason::INVALID, "transport needs exactly one of streamableHttp, sse and stdio"));
        }
    };
    if let Some(url) = url {
        Url::parse(url).map_err(|error| {
            Refusal::new(
                reason::INVALID,
                format!("{name}.url is not a URL ({error}); write it like https://mcp.example.com/mcp"),
            )
        })?;
    }
    Ok(name)
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::controllers::workspace::tests::{tenancy, web};
    use agentapi_crds::conditions::ACCEPTED;

    pub(crate) fn github() -> McpConnection {
        serde_json::from_value(json!({
            "apiVersion": "agentapi.dev/v1alpha1", "kind": "McpConnection",
            "metadata": {"name": "github", "namespace": "team-a", "uid": "2b8e4a5c-1111-4222-8333-444455556666", "generation": 1},
            "spec": {
                "organizationRef": {"name": "acme"},
                "transport": {"streamableHttp": {"url": "https://mcp.example.com/mcp"}},
            },
        }))
        .unwrap()
    }

    #[test]
    fn a_connection_becomes_a_row() {
        let row = validate(&github(), Ok(tenancy()), None, []).unwrap().row;
        assert_eq!((row.transport, row.workspace, row.organization), ("streamableHttp", None, tenancy().id));
    }

    #[test]
    fn a_workspace_has_to_be_there_in_place_and_of_the_organization() {
        let mut connection = github();
        connection.spec.workspace_ref = serde_json::from_value(json!({"name": "web"})).unwrap();
        let why = |workspace: Option<&Workspace>| validate(&connection, Ok(tenancy()), workspace, []).unwrap_err();
        assert_eq!(why(None).reason, reason::WORKSPACE_NOT_FOUND);
        assert!(why(Some(&web())).waits());
        let mut foreign = web();
        foreign.spec.organization_ref.name = "globex".into();
        assert!(why(Some(&foreign)).message.contains("another Organization"));
        let mut ready = web();
        ready.status = serde_json::from_value(json!({"workspaceId": Uuid::from_u128(9), "conditions": []})).unwrap();
        let row = validate(&connection, Ok(tenancy()), Some(&ready), []).unwrap().row;
        assert_eq!(row.workspace, Some(Uuid::from_u128(9)));
    }

    #[test]
    fn what_the_rules_of_the_crd_let_through_is_refused_with_advice() {
        let mut connection = github();
        connection.spec.transport.streamable_http.as_mut().unwrap().url = "https://[::1".into();
        let refusal = validate(&connection, Ok(tenancy()), None, []).unwrap_err();
        assert!(refusal.message.contains("write it like"), "{}", refusal.message);
    }

    /// A connection to a program.
    pub(crate) fn files() -> McpConnection {
        let mut connection = github();
        connection.metadata.name = Some("files".into());
        connection.spec.transport = serde_json::from_value(json!({"stdio": {
            "image": "agentapi.dev/mcp-server:dev",
            "command": ["npx", "-y"], "args": ["server-filesystem", "/tmp/$HOME"],
            "env": [{"name": "LOG", "value": "$(cat)"}],
            "secretRefs": ["files-credentials"],
            "egress": [{"cidr": "203.0.113.0/24", "ports": [443]}],
        }}))
        .unwrap();
        connection
    }

    #[test]
    fn of_two_programs_with_one_name_the_first_stays_and_their_number_is_limited() {
        let status = |kind: &str| {
            serde_json::from_value(json!({"conditions": [{"type": kind, "status": "True", "reason": "Accepted",
                "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}))
            .unwrap()
        };
        let mut first = files();
        first.metadata.namespace = Some("team-b".into());
        first.metadata.uid = Some("00000000-1111-4222-8333-444455556666".into());
        assert!(validate(&files(), Ok(tenancy()), None, [&first]).is_ok(), "it was never accepted");
        first.status = Some(status(ACCEPTED));
        let refusal = validate(&files(), Ok(tenancy()), None, [&first]).unwrap_err();
        assert_eq!(refusal.reason, reason::NAME_CONFLICT);
        assert!(!refusal.message.contains("team-b"), "names a namespace of others: {}", refusal.message);
        first.metadata.name = Some("other".into());
        let one = Tenancy { mcp_servers: 1, ..tenancy() };
        assert_eq!(validate(&files(), Ok(one.clone()), None, [&first]).unwrap_err().reason, reason::QUOTA_EXCEEDED);
        assert!(validate(&github(), Ok(one.clone()), None, [&first]).is_ok(), "no program, no place");
        let away = Tenancy { database_ready: false, ..one.clone() };
        let refusal = validate(&files(), Ok(away), None, [&first]).unwrap_err();
        assert_eq!(refusal.reason, reason::QUOTA_EXCEEDED, "it gets a place while Postgres is away");
        assert!(validate(&first, Ok(one), None, [&first, &files()]).is_ok(), "who was first stays");
    }
}
