//! `GET /v1/workspaces`. May touch: `store`.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::auth::Caller;
use crate::http::App;
use crate::http::error::{Problem, ProblemBody};
use crate::store::workspaces::Workspace;

/// A workspace that sessions can be created in.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkspaceView {
    /// Name within the organization.
    #[schema(example = "coding")]
    name: String,
    /// Type of its agent.
    #[schema(example = "claude")]
    agent: String,
    /// Most sessions at a time.
    max_sessions: i32,
    /// Sessions of all users that have not ended and are not suspended.
    active_sessions: i64,
}

impl From<Workspace> for WorkspaceView {
    fn from(workspace: Workspace) -> Self {
        Self {
            name: workspace.name,
            agent: workspace.agent_type,
            max_sessions: workspace.max_sessions,
            active_sessions: workspace.active_sessions,
        }
    }
}

/// All workspaces of the organization.
#[derive(Debug, Serialize, ToSchema)]
pub struct WorkspaceList {
    /// By name.
    workspaces: Vec<WorkspaceView>,
}

/// Workspaces that you can create sessions in.
#[utoipa::path(
    get, path = "/v1/workspaces", operation_id = "listWorkspaces", tag = "workspaces",
    responses(
        (status = 200, body = WorkspaceList),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn list(State(app): State<App>, caller: Caller) -> Result<Json<WorkspaceList>, Problem> {
    let mut tx = app.store.tenant_tx(&caller.scope()).await?;
    let workspaces = tx.workspaces().await?;
    tx.commit().await?;
    Ok(Json(WorkspaceList { workspaces: workspaces.into_iter().map(WorkspaceView::from).collect() }))
}
