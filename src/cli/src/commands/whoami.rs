//! `swell whoami`: who the server takes you for.

use crate::{
    context::Context,
    failure::{Exit, Result},
    views,
};

/// What the server says.
#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(default)]
pub struct Who {
    /// What the token may do.
    pub role: String,
    /// The name within the role.
    pub name: String,
}

/// Asks.
pub async fn run(context: &Context) -> Result<Exit> {
    let client = context.client()?;
    let value = client.get(&["v1", "whoami"], &[]).await?;
    let who: Who = views::read(&value)?;
    context.output.result(&value, || format!("{}:{} at {}\n", who.role, who.name, client.addr()))?;
    Ok(Exit::Done)
}
