//! `swell whoami`: the role and name that the server knows the user by.

use crate::{
    context::Context,
    failure::{Exit, Result},
    views,
};

/// The identity that a token proves.
#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(default)]
pub struct Who {
    /// What the token may do, such as `developer`.
    pub role: String,
    /// The name within the role, for attribution.
    pub name: String,
}

/// Runs `swell whoami`.
pub async fn run(context: &Context) -> Result<Exit> {
    let client = context.client()?;
    let value = client.get(&["v1", "whoami"], &[]).await?;
    let who: Who = views::read(&value)?;
    context.output.result(&value, || format!("{}:{} at {}\n", who.role, who.name, client.addr()))?;
    Ok(Exit::Done)
}
