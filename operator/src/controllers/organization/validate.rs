//! The spec parsed once into what the other steps use. Pure.
use crate::tenancy::{names::TenantRoles, organization::Tenant};
use agentapi_crds::{Organization, conditions::reason, names};
use kube::ResourceExt;
use serde_json::{Value, json};
use uuid::Uuid;

/// Why an Organization can't be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// One of [`reason`].
    pub reason: &'static str,
    /// What to do about it.
    pub message: String,
}

/// The tenant that the Organization describes.
pub fn validate(organization: &Organization) -> Result<Tenant, Refusal> {
    let invalid = |message: String| Refusal { reason: reason::INVALID, message };
    let slug = organization.metadata.name.clone().unwrap_or_default();
    let roles = TenantRoles::of(&slug).map_err(|error| invalid(error.to_string()))?;
    let id = organization
        .metadata
        .uid
        .as_deref()
        .and_then(|uid| Uuid::parse_str(uid).ok())
        .ok_or_else(|| invalid("metadata.uid is not a UUID; the API server sets it".into()))?;
    let spec = &organization.spec;
    let rotation = organization.annotations().get(names::ANNOTATION_ROTATE_DATA_KEY).map_or("", String::as_str);
    Ok(Tenant {
        id,
        roles,
        display_name: spec.display_name.clone(),
        issuer: spec.identity.issuer.clone(),
        audience: spec.identity.audience.clone(),
        jwks_uri: spec.identity.jwks_uri.clone(),
        org_claim_value: organization.org_claim().to_owned(),
        identity: to_object(&spec.identity),
        quota: to_object(&spec.quota),
        mcp_open_ranges: spec.mcp.as_ref().map(|mcp| mcp.allow_private_ranges.clone()).unwrap_or_default(),
        deletion_policy: spec.deletion_policy,
        generation: organization.metadata.generation.unwrap_or_default(),
        // The column takes 256 bytes; what is cut off only matters to somebody who wants to rotate by it.
        data_key_rotation: rotation.get(..rotation.floor_char_boundary(256)).unwrap_or_default().to_owned(),
        slug,
    })
}

fn to_object(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_else(|_| json!({}))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::controllers::organization::tests::acme;

    #[test]
    fn the_claim_value_is_the_name_unless_the_spec_says_otherwise() {
        assert_eq!(validate(&acme()).unwrap().org_claim_value, "acme");
        let mut other = acme();
        other.spec.identity.org_claim = Some("acme-inc".into());
        assert_eq!(validate(&other).unwrap().org_claim_value, "acme-inc");
    }

    #[test]
    fn a_name_that_would_be_another_tenants_role_is_refused_with_advice() {
        let mut organization = acme();
        organization.metadata.name = Some("acme-ro".into());
        let refusal = validate(&organization).unwrap_err();
        assert_eq!(refusal.reason, reason::INVALID);
        assert!(refusal.message.contains("not ending in -ro"), "{}", refusal.message);
    }
}
