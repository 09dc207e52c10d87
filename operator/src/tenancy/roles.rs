//! What the roles of a tenant must look like, what they look like, and the statements in between.
//! The comparison is pure; `observe` reads all tenants' roles at once.
use super::{
    Result, failed,
    names::{Identifier, TenantRoles, id_role},
};
use sqlx::{PgExecutor, Row, postgres::PgRow};
use std::collections::BTreeMap;
use uuid::Uuid;

const TENANT_GROUP: &str = "agentapi_tenant";
const READ_GROUP: &str = "agentapi_tenant_ro";
const RUNTIME: &str = "agentapi_runtime";
const OPERATOR: &str = "agentapi_operator";
/// Names of tenants' roles, for Postgres. `catalogue.sql`, which anybody can run, says it too.
const TENANT_ROLES: &str = "^(org_|[{])";
const READ_CONNECTIONS: i32 = 10;
/// Sorted by name. A courtesy to the server and no fence: the login may change each for its own connections.
const READ_SETTINGS: [(&str, &str); 4] = [
    ("default_transaction_read_only", "on"),
    ("idle_in_transaction_session_timeout", "60s"),
    ("idle_session_timeout", "1h"),
    ("statement_timeout", "60s"),
];

/// A role as `pg_roles` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)]
pub struct Observed {
    /// May log in.
    pub login: bool,
    /// Uses the rights of its groups without SET ROLE.
    pub inherit: bool,
    /// Has a right that no tenant may have and that ALTER ROLE of a CREATEROLE role can take away.
    pub creates: bool,
    /// Is superuser, or bypasses RLS, or replicates: only a superuser can alter that, so the role is made anew.
    pub above_rls: bool,
    /// Highest number of connections, -1 without limit.
    pub connections: i32,
    /// Its settings, as `name=value`.
    pub settings: Vec<String>,
    /// Groups that it is in.
    pub member_of: Vec<String>,
    /// Roles that are in it.
    pub members: Vec<String>,
    /// Digest of its password, from its comment.
    pub password_digest: Option<String>,
}

/// All roles called `org_…` or `{<id>}`.
pub type Catalogue = BTreeMap<String, Observed>;

/// Read all tenants' roles in one query.
pub async fn observe(database: impl PgExecutor<'_>) -> Result<Catalogue> {
    let rows = sqlx::query(
        r"select r.rolname::text as name, r.rolcanlogin, r.rolinherit, r.rolcreatedb or r.rolcreaterole as creates,
                 r.rolsuper or r.rolbypassrls or r.rolreplication as above_rls, r.rolconnlimit,
                 coalesce(r.rolconfig, '{}') as settings,
                 array(select g.rolname::text from pg_auth_members m join pg_roles g on g.oid = m.roleid
                       where m.member = r.oid order by 1) as member_of,
                 array(select g.rolname::text from pg_auth_members m join pg_roles g on g.oid = m.member
                       where m.roleid = r.oid order by 1) as members,
                 shobj_description(r.oid, 'pg_authid') as comment
          from pg_roles r where r.rolname ~ $1",
    )
    .bind(TENANT_ROLES)
    .fetch_all(database)
    .await
    .map_err(failed("read the roles of tenants"))?;
    rows.iter().map(|row| observed(row).map_err(failed("read the roles of tenants"))).collect()
}

fn observed(row: &PgRow) -> sqlx::Result<(String, Observed)> {
    let comment: Option<String> = row.try_get("comment")?;
    let observed = Observed {
        login: row.try_get("rolcanlogin")?,
        inherit: row.try_get("rolinherit")?,
        creates: row.try_get("creates")?,
        above_rls: row.try_get("above_rls")?,
        connections: row.try_get("rolconnlimit")?,
        settings: row.try_get("settings")?,
        member_of: row.try_get("member_of")?,
        members: row.try_get("members")?,
        password_digest: comment.and_then(|comment| comment.strip_prefix("password sha256 ").map(str::to_owned)),
    };
    Ok((row.try_get("name")?, observed))
}

/// Statements that bring a tenant's roles into order; none when they are.
pub fn plan(id: Uuid, roles: &TenantRoles, catalogue: &Catalogue) -> Vec<String> {
    let mut statements = Vec::new();
    for role in [&id_role(id), &roles.tenant] {
        statements.extend(plan_role(role, &Kind::Tenant, catalogue.get(role.as_str())));
    }
    statements.extend(plan_role(&roles.read, &Kind::Read, catalogue.get(roles.read.as_str())));
    statements
}

enum Kind {
    Tenant,
    Read,
}

fn plan_role(role: &Identifier, kind: &Kind, observed: Option<&Observed>) -> Vec<String> {
    let (login, limit, group, member) = match kind {
        Kind::Tenant => ("nologin", -1, TENANT_GROUP, Some(RUNTIME)),
        Kind::Read => ("login", READ_CONNECTIONS, READ_GROUP, None),
    };
    let attributes = format!("{login} inherit nocreatedb nocreaterole connection limit {limit}");
    let settings: &[(&str, &str)] = match kind {
        Kind::Tenant => &[],
        Kind::Read => &READ_SETTINGS,
    };
    let mut statements = Vec::new();
    let fresh =
        Observed { login: matches!(kind, Kind::Read), inherit: true, connections: limit, ..Observed::default() };
    let present = match observed {
        None => {
            statements.push(format!("create role {role} {attributes}"));
            &fresh
        }
        Some(observed) if observed.above_rls => {
            statements.push(format!("drop role {role}"));
            statements.push(format!("create role {role} {attributes}"));
            &fresh
        }
        Some(observed) => {
            let right = observed.login == matches!(kind, Kind::Read)
                && observed.inherit
                && !observed.creates
                && observed.connections == limit;
            if !right {
                statements.push(format!("alter role {role} {attributes}"));
            }
            observed
        }
    };
    let wanted: Vec<String> = settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut shown = present.settings.clone();
    shown.sort();
    if shown != wanted {
        if !shown.is_empty() {
            statements.push(format!("alter role {role} reset all"));
        }
        statements.extend(settings.iter().map(|(name, value)| format!("alter role {role} set {name} = '{value}'")));
    }
    for foreign in present.member_of.iter().filter(|name| *name != group) {
        statements.push(format!("revoke {} from {role}", quoted(foreign)));
    }
    if !present.member_of.iter().any(|name| name == group) {
        statements.push(format!("grant {group} to {role}"));
    }
    // Since Postgres 16 whoever makes a role is a member of it, without the right to use it.
    for foreign in present.members.iter().filter(|name| Some(name.as_str()) != member && *name != OPERATOR) {
        statements.push(format!("revoke {role} from {}", quoted(foreign)));
    }
    if let Some(member) = member
        && !present.members.iter().any(|name| name == member)
    {
        statements.push(format!("grant {role} to {member}"));
    }
    statements
}

/// A role that somebody else made may have any name.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ID: Uuid = Uuid::from_u128(0x2b8e_4a5c_1111_4222_8333_4444_5555_6666);

    fn right() -> Catalogue {
        let tenant = Observed {
            inherit: true,
            connections: -1,
            member_of: vec![TENANT_GROUP.into()],
            members: vec![RUNTIME.into()],
            ..Observed::default()
        };
        let read = Observed {
            login: true,
            inherit: true,
            connections: READ_CONNECTIONS,
            settings: READ_SETTINGS.iter().rev().map(|(name, value)| format!("{name}={value}")).collect(),
            member_of: vec![READ_GROUP.into()],
            ..Observed::default()
        };
        let id = id_role(ID).as_str().to_owned();
        [(id, tenant.clone()), ("org_acme".to_owned(), tenant), ("org_acme_ro".to_owned(), read)].into()
    }

    fn planned(change: impl FnOnce(&mut Catalogue)) -> Vec<String> {
        let mut catalogue = right();
        change(&mut catalogue);
        plan(ID, &TenantRoles::of("acme").unwrap(), &catalogue)
    }

    #[test]
    fn the_catalogue_knows_tenants_roles_by_the_same_names() {
        assert_eq!(crate::isolation::CATALOGUE.matches(&format!("'{TENANT_ROLES}'")).count(), 1);
    }

    #[test]
    fn roles_in_order_need_no_statement() {
        assert!(planned(|_| {}).is_empty());
    }

    #[test]
    fn a_new_tenant_gets_both_roles() {
        insta::assert_snapshot!(planned(Catalogue::clear).join(";\n"));
    }

    #[test]
    fn each_kind_of_drift_is_put_right() {
        let mut shown = Vec::new();
        let mut drift = |what: &str, change: &dyn Fn(&mut Observed)| {
            let statements = planned(|catalogue| change(catalogue.get_mut("org_acme").unwrap()));
            shown.push(format!("{what}: {}", statements.join("; ")));
        };
        drift("may log in", &|role| role.login = true);
        drift("may create roles", &|role| role.creates = true);
        drift("bypasses row-level security", &|role| role.above_rls = true);
        drift("is in another group", &|role| role.member_of.push("org_globex".into()));
        drift("is in a group with an evil name", &|role| role.member_of.push("x\"; drop".into()));
        drift("has left its group", &|role| role.member_of.clear());
        drift("has another member", &|role| role.members.push("org_globex".into()));
        drift("the runtime has left", &|role| role.members.clear());
        drift("has a setting", &|role| role.settings.push("row_security=off".into()));
        insta::assert_snapshot!(shown.join("\n"));
    }
}
