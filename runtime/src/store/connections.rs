//! MCP connections: those that the operator writes from resources, and those that admins make through the API.
//! May touch: `mcp_connections`, and the tables beside it that say how they are doing.

use serde_json::Value;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::{StoreError, TenantTx};
use crate::mcp::connection::{Identity, Origin};
use crate::mcp::policy::ToolDigest;

/// What was last seen of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// RFC 3339, UTC.
    pub observed_at: String,
    /// Generation of the row that was looked with.
    pub generation: i64,
    /// `Ready`, or what is wrong.
    pub state: String,
    /// More about it.
    pub message: Option<String>,
    /// Tools of the server, all of them.
    pub tools: Vec<ToolDigest>,
    /// Tools as they were first seen in this generation.
    pub pinned: Option<Vec<ToolDigest>>,
    /// A pinned tool has changed.
    pub quarantined: bool,
    /// What the breaker did.
    pub breaker: String,
    /// How it stands with consent.
    pub auth_state: Option<String>,
    /// Version of the protocol.
    pub protocol: Option<String>,
}

/// A row, as it is stored.
#[derive(Debug, Clone)]
pub struct StoredConnection {
    /// Name and place.
    pub identity: Identity,
    /// Name of the workspace.
    pub workspace: Option<String>,
    /// The resource's spec, or the same from the API.
    pub spec: Value,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// RFC 3339, UTC.
    pub updated_at: String,
    /// Address ranges that the organization opens.
    pub open: Vec<String>,
    /// What was last seen of the server.
    pub observation: Option<Observation>,
}

/// Columns of [`StoredConnection`]; `sqlx::query` takes literals only, hence a macro.
macro_rules! select_connection {
    ($rest:literal) => {
        concat!(
            "select c.id, c.name, c.origin, c.k8s_namespace, c.workspace_id, w.name as workspace, c.spec, c.generation,
                    to_char(c.created_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') as created_at,
                    to_char(c.updated_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') as updated_at,
                    g.mcp_open_ranges as open,
                    to_char(o.observed_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') as observed_at,
                    o.generation as observed_generation, o.state, o.message, o.tools, o.pinned, o.quarantined, o.breaker,
                    o.auth_state, o.protocol
             from mcp_connections c join organizations g on g.id = c.org_id
                  left join workspaces w on w.org_id = c.org_id and w.id = c.workspace_id
                  left join mcp_observations o on o.org_id = c.org_id and o.connection_id = c.id ",
            $rest
        )
    };
}

fn digests(value: Value) -> Result<Vec<ToolDigest>, StoreError> {
    serde_json::from_value(value).map_err(|_| StoreError::Corrupt("mcp_observations.tools"))
}

impl Observation {
    fn from_row(row: &PgRow) -> Result<Option<Self>, StoreError> {
        let Some(observed_at) = row.try_get("observed_at")? else { return Ok(None) };
        Ok(Some(Self {
            observed_at,
            generation: row.try_get("observed_generation")?,
            state: row.try_get("state")?,
            message: row.try_get("message")?,
            tools: digests(row.try_get("tools")?)?,
            pinned: row.try_get::<Option<Value>, _>("pinned")?.map(digests).transpose()?,
            quarantined: row.try_get("quarantined")?,
            breaker: row.try_get("breaker")?,
            auth_state: row.try_get("auth_state")?,
            protocol: row.try_get("protocol")?,
        }))
    }
}

impl StoredConnection {
    fn from_row(row: &PgRow) -> Result<Self, StoreError> {
        let origin = match row.try_get("origin")? {
            "crd" => Origin::Crd,
            "api" => Origin::Api,
            _ => return Err(StoreError::Corrupt("mcp_connections.origin")),
        };
        Ok(Self {
            identity: Identity {
                id: row.try_get("id")?,
                name: row.try_get("name")?,
                origin,
                namespace: row.try_get("k8s_namespace")?,
                workspace_id: row.try_get("workspace_id")?,
                generation: row.try_get("generation")?,
            },
            workspace: row.try_get("workspace")?,
            spec: row.try_get("spec")?,
            created_at: row.try_get("created_at")?,
            updated_at: row.try_get("updated_at")?,
            open: row.try_get("open")?,
            observation: Observation::from_row(row)?,
        })
    }
}

/// Which connections a list shows.
#[derive(Debug, Default)]
pub struct ConnectionFilter<'a> {
    /// Only those of this origin.
    pub origin: Option<Origin>,
    /// Only those of this name.
    pub name: Option<&'a str>,
    /// Only those of this workspace.
    pub workspace: Option<&'a str>,
    /// Only those with this transport.
    pub transport: Option<&'a str>,
    /// Only those after this one.
    pub after: Option<Uuid>,
    /// At most this many.
    pub limit: i64,
}

/// What an admin says about a connection.
#[derive(Debug)]
pub struct NewConnection<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its workspace.
    pub workspace_id: Option<Uuid>,
    /// Kind of its transport.
    pub transport: &'a str,
    /// The rest.
    pub spec: &'a Value,
}

fn origin_text(origin: Origin) -> &'static str {
    match origin {
        Origin::Crd => "crd",
        Origin::Api => "api",
    }
}

fn name_taken(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.constraint() == Some("mcp_connections_name_once"))
}

impl TenantTx {
    /// A connection of the organization.
    pub async fn connection(&mut self, id: Uuid) -> Result<Option<StoredConnection>, StoreError> {
        let row = sqlx::query(select_connection!("where c.id = $1")).bind(id).fetch_optional(&mut *self.tx).await?;
        row.as_ref().map(StoredConnection::from_row).transpose()
    }

    /// By id.
    pub async fn connections(&mut self, filter: &ConnectionFilter<'_>) -> Result<Vec<StoredConnection>, StoreError> {
        let rows = sqlx::query(select_connection!(
            "where ($1::text is null or c.origin = $1) and ($2::text is null or c.name = $2)
               and ($3::text is null or w.name = $3) and ($4::text is null or c.transport = $4)
               and ($5::uuid is null or c.id > $5)
             order by c.id limit $6"
        ))
        .bind(filter.origin.map(origin_text))
        .bind(filter.name)
        .bind(filter.workspace)
        .bind(filter.transport)
        .bind(filter.after)
        .bind(filter.limit)
        .fetch_all(&mut *self.tx)
        .await?;
        rows.iter().map(StoredConnection::from_row).collect()
    }

    /// Address ranges that the organization opens.
    pub async fn open_ranges(&mut self) -> Result<Vec<String>, StoreError> {
        let open = sqlx::query_scalar("select mcp_open_ranges from organizations where id = $1");
        Ok(open.bind(self.organization_id).fetch_optional(&mut *self.tx).await?.unwrap_or_default())
    }

    /// How many connections the API owns.
    pub async fn count_own_connections(&mut self) -> Result<i64, StoreError> {
        let count = sqlx::query_scalar("select count(*) from mcp_connections where origin = 'api'");
        Ok(count.fetch_one(&mut *self.tx).await?)
    }

    /// The id of a workspace that is not deleted.
    pub async fn workspace_id(&mut self, name: &str) -> Result<Option<Uuid>, StoreError> {
        let id = sqlx::query_scalar("select id from workspaces where name = $1 and deleted_at is null");
        Ok(id.bind(name).fetch_optional(&mut *self.tx).await?)
    }

    /// Adds a connection that the API owns. False: there is one of this name.
    pub async fn insert_connection(&mut self, id: Uuid, new: &NewConnection<'_>) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "insert into mcp_connections (org_id, id, name, workspace_id, origin, transport, spec, generation, created_by)
             values ($1, $2, $3, $4, 'api', $5, $6, 1, $7)
             on conflict on constraint mcp_connections_name_once do nothing",
        )
        .bind(self.organization_id)
        .bind(id)
        .bind(new.name)
        .bind(new.workspace_id)
        .bind(new.transport)
        .bind(new.spec)
        .bind(self.user_id)
        .execute(&mut *self.tx)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Changes a connection that the API owns. False: there is another one of this name; the transaction is of no more
    /// use then.
    pub async fn update_connection(&mut self, id: Uuid, new: &NewConnection<'_>) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "update mcp_connections
             set name = $2, workspace_id = $3, transport = $4, spec = $5, generation = generation + 1
             where id = $1 and origin = 'api'",
        )
        .bind(id)
        .bind(new.name)
        .bind(new.workspace_id)
        .bind(new.transport)
        .bind(new.spec)
        .execute(&mut *self.tx)
        .await;
        match done {
            Ok(done) => Ok(done.rows_affected() == 1),
            Err(error) if name_taken(&error) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a connection that the API owns, and with it its grants, clients and observations.
    pub async fn delete_connection(&mut self, id: Uuid) -> Result<bool, StoreError> {
        let done = sqlx::query("delete from mcp_connections where id = $1 and origin = 'api'")
            .bind(id)
            .execute(&mut *self.tx)
            .await?;
        Ok(done.rows_affected() == 1)
    }
}
