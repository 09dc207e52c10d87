//! `agentapi-operator receipt verify`: checks the receipt of an organization that has left, without database and
//! cluster. May touch: the file, standard input and output.
use crate::signing::{self, Statement};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use clap::{Args, Subcommand};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
};

/// Why a receipt is not believed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file.
    #[error("can't read {path}: {source}")]
    Read {
        /// Where.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The key.
    #[error(
        "--public-key must be the base64url x of an Ed25519 key (43 characters): \
         kubectl -n agentapi-system get secret agentapi-audit-signing -o jsonpath='{{.data.public\\.x}}' | base64 -d"
    )]
    Key,
    /// The signature.
    #[error("the receipt is not one that the holder of this key has signed, or it was changed: {0}")]
    Signature(#[from] signing::Error),
    /// The content; never seen with a good signature.
    #[error("the receipt's digest does not fit its steps")]
    Digest,
    /// The output.
    #[error("can't print the receipt: {0}")]
    Print(std::io::Error),
}

/// Arguments of `receipt`.
#[derive(Debug, Args)]
pub struct ReceiptArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check a receipt and print what it says.
    Verify {
        /// File with the receipt (`receipt.jws` of the ConfigMap); `-`: standard input.
        file: PathBuf,
        /// base64url of the operator's public key, from a place that you trust.
        #[arg(long)]
        public_key: String,
    },
}

/// Run it.
pub fn run(arguments: &ReceiptArgs) -> Result<(), Error> {
    let Command::Verify { file, public_key } = &arguments.command;
    let claims = verify(&read(file)?, public_key)?;
    writeln!(std::io::stdout(), "{claims:#}").map_err(Error::Print)
}

fn read(file: &Path) -> Result<String, Error> {
    let failed = |source| Error::Read { path: file.display().to_string(), source };
    if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(failed)?;
        return Ok(text);
    }
    std::fs::read_to_string(file).map_err(failed)
}

/// What a receipt says, if the holder of the key has signed it.
pub fn verify(receipt: &str, public_key: &str) -> Result<Value, Error> {
    let key = URL_SAFE_NO_PAD.decode(public_key.trim()).ok().filter(|key| key.len() == 32).ok_or(Error::Key)?;
    let claims = signing::verify(Statement::Receipt, receipt.trim(), &key)?;
    let digest = hex::encode(Sha256::digest(claims["steps"].to_string()));
    if claims["stepsSha256"] == digest { Ok(claims) } else { Err(Error::Digest) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::signing::Signer;
    use serde_json::json;

    const PEM: &[u8] = b"-----BEGIN PRIVATE KEY-----\n\
                         MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n\
                         -----END PRIVATE KEY-----\n";
    const X: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";

    #[test]
    fn a_receipt_is_believed_only_as_it_was_signed_and_only_with_the_key() {
        let signer = Signer::from_pem(PEM).unwrap();
        let steps = json!({"drain": {"at": "2026-11-24", "sessionsCutOff": 0}});
        let digest = hex::encode(Sha256::digest(steps.to_string()));
        let sign = |claims: Value| signer.sign(Statement::Receipt, &claims).unwrap();
        let receipt = sign(json!({"organization": "acme", "steps": steps, "stepsSha256": digest}));
        assert_eq!(verify(&format!("{receipt}\n"), X).unwrap()["organization"], "acme");
        assert!(matches!(verify(&receipt, "short"), Err(Error::Key)));
        let other = URL_SAFE_NO_PAD.encode([7; 32]);
        assert!(matches!(verify(&receipt, &other), Err(Error::Signature(_))));
        assert!(matches!(verify(&receipt.replace('a', "b"), X), Err(Error::Signature(_))));
        let checkpoint = signer.sign(Statement::Checkpoint, &json!({})).unwrap();
        assert!(matches!(verify(&checkpoint, X), Err(Error::Signature(_))));
        let odd = sign(json!({"steps": {}, "stepsSha256": digest}));
        assert!(matches!(verify(&odd, X), Err(Error::Digest)));
    }
}
