//! What an error of Postgres means for the pipeline.

use std::error::Error as _;

use deadpool_postgres::PoolError;
use tokio_postgres::error::{DbError, SqlState};

use crate::error::{Error, ErrorKind};
use crate::probe::{Lack, Lacking};

/// States outside of the classes 22 and 23 by which the server refuses a row, and not what was asked of it: the check
/// option of a view, a value too long for an index, what a trigger raises, and what it asserts.
const ROW_STATES: [&str; 4] = ["44000", "54000", "P0001", "P0004"];

/// Gives the conditions by which PL/pgSQL tells that a row is refused.
pub(super) const ROW_CONDITIONS: &str = "data_exception OR integrity_constraint_violation OR \
    with_check_option_violation OR program_limit_exceeded OR raise_exception OR assert_failure";

/// Turns an error of the client or the server into ours: `doing: what the server says`.
pub(super) fn failed(doing: impl Into<String>, error: tokio_postgres::Error) -> Error {
    let doing = doing.into();
    let Some(answer) = error.as_db_error() else {
        return not_answered(doing, error);
    };
    let kind = kind_of(answer.code());
    let text = match advice(answer) {
        Some(advice) => format!("{doing}: {}; {advice}", describe(answer)),
        None => format!("{doing}: {}", describe(answer)),
    };
    Error::new(kind, text)
}

/// Turns a failure to get a connection into an error.
pub(super) fn not_connected(error: PoolError) -> Error {
    match error {
        PoolError::Backend(error) => failed("could not connect to Postgres", error),
        PoolError::Timeout(_) => Error::unavailable("could not connect to Postgres in time"),
        other => Error::internal("could not connect to Postgres").because(other),
    }
}

/// Tells whether the server refused the user or the password: RDS says 28000 of a token, where others say 28P01.
pub(super) fn is_refused(error: &PoolError) -> bool {
    matches!(error, PoolError::Backend(error) if error.code().is_some_and(|state| state.code().starts_with("28")))
}

/// Tells what is missing where something has failed.
pub(super) fn lacking(error: Error) -> Lacking {
    let text = error.to_string();
    let is_forbidden = ["(SQLSTATE 28", "(SQLSTATE 42501)"].iter().any(|state| text.contains(state));
    if is_forbidden { Lacking { lack: Lack::Permission, error } } else { error.into() }
}

/// Sorts the classes of SQLSTATE (appendix A of the manual of PostgreSQL).
fn kind_of(state: &SqlState) -> ErrorKind {
    let code = state.code();
    // 57014 is our own statement timeout, 55P03 our own lock timeout; 25006 says a server that is a standby until it
    // has taken over, or that was put to read-only while its disk is full.
    if code.starts_with("57P") || matches!(code, "25006" | "55P03" | "57014") {
        return ErrorKind::Unavailable;
    }
    if ROW_STATES.contains(&code) {
        return ErrorKind::Data;
    }
    match code.get(..2) {
        Some("08" | "40" | "53" | "58") => ErrorKind::Unavailable,
        Some("22" | "23") => ErrorKind::Data,
        Some("0A" | "25" | "28" | "3D" | "3F" | "42" | "55") => ErrorKind::Config,
        _ => ErrorKind::Internal,
    }
}

fn describe(answer: &DbError) -> String {
    let mut text = format!("{} (SQLSTATE {})", answer.message(), answer.code().code());
    let places = [
        ("schema", answer.schema()),
        ("table", answer.table()),
        ("column", answer.column()),
        ("constraint", answer.constraint()),
        ("detail", answer.detail()),
        ("context", answer.where_()),
    ];
    for (what, value) in places {
        if let Some(value) = value {
            text.push_str(&format!(", {what} {value}"));
        }
    }
    text
}

fn advice(answer: &DbError) -> Option<&'static str> {
    match answer.code().code() {
        "25006" => Some(
            "the server takes no writes now: is it a standby, or is `default_transaction_read_only` on for this user",
        ),
        "53100" => Some("free space on the server's disk"),
        "53300" => Some("raise `max_connections` or the limit of the role or the database, or close other connections"),
        "28P01" => Some("is the password in the secret still right"),
        "28000" => Some("does pg_hba.conf of the server let this user in, with or without TLS"),
        "3D000" => Some("create the database, or name another one in the URL"),
        "42501" => {
            Some("grant the right to the user in the URL, or create the table beforehand and set `create: false`")
        }
        "42P10" => Some("the table needs a primary key or a unique constraint on exactly the columns of `key`"),
        _ => None,
    }
}

/// There is no answer of the server: the network, TLS or the URL is at fault.
fn not_answered(doing: String, error: tokio_postgres::Error) -> Error {
    let mut cause = error.source();
    while let Some(inner) = cause {
        let tls = inner
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref)
            .map_or_else(|| inner.downcast_ref::<rustls::Error>(), |wrapped| wrapped.downcast_ref::<rustls::Error>());
        if let Some(rustls::Error::InvalidCertificate(why)) = tls {
            return Error::config(format!(
                "{doing}: the server's certificate is not trusted ({why:?}); name the file of its authority with \
                 `sslrootcert=` in the URL, or give up the check with `sslmode=no-verify`"
            ));
        }
        cause = inner.source();
    }
    let text = error.to_string();
    let by_user = ["invalid configuration", "authentication error"].iter().any(|kind| text.starts_with(kind));
    Error::new(if by_user { ErrorKind::Config } else { ErrorKind::Unavailable }, doing).because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_tells_what_is_to_be_done() {
        let of = |codes: &str, kind: ErrorKind| {
            for code in codes.split(' ') {
                assert_eq!(kind_of(&SqlState::from_code(code)), kind, "{code}");
            }
        };
        // The server, the network or another session is at fault, and that passes.
        of("08000 08003 08006 08P01", ErrorKind::Unavailable);
        of("40001 40002 40003 40P01", ErrorKind::Unavailable);
        of("53000 53100 53200 53300 53400", ErrorKind::Unavailable);
        of("57P01 57P02 57P03 57P05 57014 55P03 25006 58000 58030", ErrorKind::Unavailable);
        // A row is at fault.
        of("22001 22003 22012 22021 22P02 22P05 23502 23503 23505 23514 23P01", ErrorKind::Data);
        of("44000 54000 P0001 P0004", ErrorKind::Data);
        // The file, the table or a right is at fault.
        of("42501 42601 42703 42804 42P01 42P10 28000 28P01 3D000 3F000 0A000 55000", ErrorKind::Config);
        // Nobody knows.
        of("XX000 XX001 54001 P0002 F0000", ErrorKind::Internal);
    }
}
