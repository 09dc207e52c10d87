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
    read_held(response, limit, |_| Ok(())).await
}

/// The same where somebody says, before each part of it is taken, whether there is room for so many bytes.
pub async fn read_held<E: From<BodyError>>(
    response: reqwest::Response,
    limit: usize,
    mut hold: impl FnMut(usize) -> Result<(), E>,
) -> Result<Bytes, E> {
    if response.content_length().is_some_and(|length| length > limit as u64) {
        return Err(BodyError::TooLarge(limit).into());
    }
    let (mut body, mut read) = (response.bytes_stream(), BytesMut::new());
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(BodyError::Broken)?;
        let length = read.len() + chunk.len();
        if length > limit {
            return Err(BodyError::TooLarge(limit).into());
        }
        hold(length)?;
        read.extend_from_slice(&chunk);
    }
    Ok(read.freeze())
}
