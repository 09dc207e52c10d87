//! A clock that a test moves: `now()` of those who connect to Postgres with its URL, for whom a function of that name stands
//! before the real one. Everybody else has the real time.

use anyhow::Result;
use url::Url;

use super::World;

/// The clock.
pub struct Clock {
    pub(super) url: String,
}

impl Clock {
    /// In this world's database; it shows the real time until it is moved.
    pub async fn new(world: &World) -> Result<Self> {
        for statement in [
            "create schema clock",
            "create table clock.moved (seconds float8 not null)",
            "insert into clock.moved values (0)",
            "create function clock.now() returns timestamptz language sql stable as
             $$ select pg_catalog.now() + (select seconds from clock.moved) * interval '1 second' $$",
            "grant usage on schema clock to public",
            "grant select on clock.moved to public",
        ] {
            world.admin(statement).await?;
        }
        let mut url: Url = world.platform.db.runtime_url().parse()?;
        url.query_pairs_mut().append_pair("options[search_path]", "clock,pg_catalog,public");
        Ok(Self { url: url.into() })
    }

    /// So much later.
    pub async fn forward(&self, world: &World, seconds: i32) -> Result<()> {
        world.admin(&format!("update clock.moved set seconds = seconds + {seconds}")).await.map(drop)
    }
}
