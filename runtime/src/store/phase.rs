//! Where a session is in its life. Pure.

use super::StoreError;

/// Where a session is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub enum Phase {
    /// Accepted; no pod yet.
    Pending,
    /// A pod is chosen; the agent is not ready yet.
    Starting,
    /// The agent takes messages.
    Running,
    /// Nobody uses it: its pod is being given up, and what it holds is kept.
    Suspending,
    /// It has no pod; the next message wakes it.
    Suspended,
    /// Being deleted.
    Terminating,
    /// Over; the transcript stays.
    Ended,
    /// Over because of an error.
    Failed,
}

impl Phase {
    /// Those of sessions that are not over.
    pub const UNFINISHED: [Self; 6] =
        [Self::Pending, Self::Starting, Self::Running, Self::Suspending, Self::Suspended, Self::Terminating];

    /// As in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Starting => "Starting",
            Self::Running => "Running",
            Self::Suspending => "Suspending",
            Self::Suspended => "Suspended",
            Self::Terminating => "Terminating",
            Self::Ended => "Ended",
            Self::Failed => "Failed",
        }
    }

    pub(super) fn parse(text: &str) -> Result<Self, StoreError> {
        Ok(match text {
            "Pending" => Self::Pending,
            "Starting" => Self::Starting,
            "Running" => Self::Running,
            "Suspending" => Self::Suspending,
            "Suspended" => Self::Suspended,
            "Terminating" => Self::Terminating,
            "Ended" => Self::Ended,
            "Failed" => Self::Failed,
            _ => return Err(StoreError::Corrupt("sessions.phase")),
        })
    }

    /// It has no pod, or will have none in a moment, and can be woken.
    pub fn is_asleep(self) -> bool {
        matches!(self, Self::Suspending | Self::Suspended)
    }

    /// Nothing more will happen to it.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Ended | Self::Failed)
    }
}
