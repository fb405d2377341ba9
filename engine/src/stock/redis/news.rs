//! The subscription: a connection of its own, opened again for as long as someone listens.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use futures_core::Stream as _;
use redis::{Msg, RedisResult};
use tokio::sync::mpsc::Sender;

use super::endpoint::Endpoint;
use super::link::{server, within};
use crate::stock::ask::Change;

/// What the subscription brings.
#[derive(Debug)]
pub enum Heard {
    /// The pool of the item of this name has news.
    Changed(Change, String),
    /// It listens, and may have missed something before.
    Subscribed,
}

/// How often a silent connection is asked whether it still is one.
const PING_EVERY: Duration = Duration::from_secs(1);
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Listens until nobody takes what is heard any more.
pub async fn follow(endpoint: Endpoint, to: Sender<Heard>) {
    let mut pause = PAUSE_MIN;
    for turn in 0.. {
        let before = tokio::time::Instant::now();
        // Why it ended is told by the calls, which fail in the same way.
        let _ = listen(&endpoint, turn, &to).await;
        if to.is_closed() {
            return;
        }
        let has_lasted = before.elapsed() > 2 * PING_EVERY;
        pause = if has_lasted { PAUSE_MIN } else { (2 * pause).min(PAUSE_MAX) };
        tokio::time::sleep(pause).await;
    }
}

/// One subscription, until it breaks.
async fn listen(endpoint: &Endpoint, turn: usize, to: &Sender<Heard>) -> RedisResult<()> {
    let client = server(endpoint, turn).await?;
    let pubsub = within(endpoint.connect_timeout, client.get_async_pubsub()).await?;
    let (mut sink, mut stream) = pubsub.split();
    within(endpoint.timeout, sink.subscribe(endpoint.channel())).await?;
    if to.send(Heard::Subscribed).await.is_err() {
        return Ok(());
    }
    loop {
        let next = poll_fn(|cx| Pin::new(&mut stream).poll_next(cx));
        match tokio::time::timeout(PING_EVERY, next).await {
            Ok(Some(message)) => {
                let Some((change, name)) = read(&message) else { continue };
                if to.send(Heard::Changed(change, name)).await.is_err() {
                    return Ok(());
                }
            }
            Ok(None) => return Ok(()),
            Err(_) => within(endpoint.timeout, sink.ping::<redis::Value>()).await.map(drop)?,
        }
    }
}

/// `CHANGE NAME`, as the scripts say it; nothing else is ours.
fn read(message: &Msg) -> Option<(Change, String)> {
    let text = std::str::from_utf8(message.get_payload_bytes()).ok()?;
    let (change, name) = text.split_once(' ')?;
    let change = Change::ALL.into_iter().find(|known| known.name() == change)?;
    Some((change, name.to_owned()))
}
