//! What a failed call of a service means.

use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

use crate::error::{Error, ErrorKind};
use crate::probe::{Lack, Lacking};

/// Tells what is missing where a call has failed.
pub(crate) fn lacking<E>(doing: String, error: SdkError<E, HttpResponse>) -> Lacking
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let lack = match (error.raw_response().map(|answer| answer.status().as_u16()), error.code()) {
        (None, _) if has_no_credentials(&error) => Lack::Permission,
        (None, _) => Lack::Network,
        (Some(429 | 500..), _) => Lack::Network,
        (_, Some(code)) if is_of_absence(code) => Lack::Thing,
        (_, Some(code)) if code.contains("Throttl") || code.contains("LimitExceeded") => Lack::Network,
        (Some(404), _) => Lack::Thing,
        _ => Lack::Permission,
    };
    let kind = if lack == Lack::Network { ErrorKind::Unavailable } else { ErrorKind::Config };
    Lacking { lack, error: Error::new(kind, doing).because(error) }
}

/// SQS says `AWS.SimpleQueueService.NonExistentQueue` or `QueueDoesNotExist`, as the protocol is.
fn is_of_absence(code: &str) -> bool {
    ["NotFound", "NonExistent", "DoesNotExist", "NoSuch"].iter().any(|part| code.contains(part))
}

fn has_no_credentials(error: &(dyn std::error::Error + 'static)) -> bool {
    error.is::<CredentialsError>() || error.source().is_some_and(has_no_credentials)
}
