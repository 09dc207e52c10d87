//! Bodies of answers, up to a limit. Pure, but for the stream that it reads.

use bytes::{Bytes, BytesMut};
use futures::StreamExt;

/// Why a body was not read.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// There is more than was asked for.
    #[error("the answer is longer than {0} bytes")]
    TooLarge(usize),
    /// It broke off.
    #[error("the answer broke off: {0}")]
    Broken(reqwest::Error),
}

/// The whole body, or an error as soon as it is known to be too long.
pub async fn read_limited(response: reqwest::Response, limit: usize) -> Result<Bytes, BodyError> {
    if response.content_length().is_some_and(|length| length > limit as u64) {
        return Err(BodyError::TooLarge(limit));
    }
    let (mut body, mut read) = (response.bytes_stream(), BytesMut::new());
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(BodyError::Broken)?;
        if read.len() + chunk.len() > limit {
            return Err(BodyError::TooLarge(limit));
        }
        read.extend_from_slice(&chunk);
    }
    Ok(read.freeze())
}
