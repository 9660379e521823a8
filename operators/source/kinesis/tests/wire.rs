//! The service's failures as they come over the network, by what is to be done.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::super::service::{Fault, Filter, IteratorFrom, Kinesis, ListPage, Service, list_all};
use crate::error::ErrorKind;
use crate::testing::kinesis::config_of;

/// Serves one answer to every request; gives the endpoint.
async fn serve(status: u16, body: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut request = vec![0; 64 * 1024];
            let _ = socket.read(&mut request).await;
            let head = format!(
                "HTTP/1.1 {status} X\r\ncontent-type: application/x-amz-json-1.1\r\ncontent-length: {}\r\n\
                 connection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = socket.write_all(head.as_bytes()).await;
        }
    });
    endpoint
}

async fn kinesis(status: u16, body: &'static str) -> Kinesis {
    Kinesis::new(&config_of(&serve(status, body).await).await, "intake")
}

fn name(fault: &Fault) -> &'static str {
    match fault {
        Fault::Busy(_) => "busy",
        Fault::Expired(_) => "expired",
        Fault::Invalid(_) => "invalid",
        Fault::Missing(_) => "missing",
        Fault::Refused(_) => "refused",
    }
}

#[tokio::test]
async fn failures_are_sorted_by_what_is_to_be_done() {
    let cases = [
        (400, r#"{"__type":"ProvisionedThroughputExceededException","message":"Rate exceeded"}"#, "busy"),
        (400, r#"{"__type":"KMSThrottlingException","message":"slow down"}"#, "busy"),
        (400, r#"{"__type":"LimitExceededException","message":"slow down"}"#, "busy"),
        (400, r#"{"__type":"ResourceInUseException","message":"another subscription"}"#, "busy"),
        (500, r#"{"__type":"InternalFailureException","message":"oh"}"#, "busy"),
        (400, r#"{"__type":"ThrottlingException","message":"slow down"}"#, "busy"),
        (400, r#"{"__type":"ExpiredTokenException","message":"credentials are renewed"}"#, "busy"),
        (500, r#"{"__type":"InternalFailure","message":"oh"}"#, "busy"),
        (503, "<html>", "busy"),
        (429, "", "busy"),
        (200, "{not json", "busy"),
        (400, r#"{"__type":"ExpiredIteratorException","message":"too old"}"#, "expired"),
        (400, r#"{"__type":"InvalidArgumentException","message":"no"}"#, "invalid"),
        (400, r#"{"__type":"ResourceNotFoundException","message":"none"}"#, "missing"),
        (400, r#"{"__type":"AccessDeniedException","message":"is not authorized"}"#, "refused"),
        (403, r#"{"__type":"UnrecognizedClientException","message":"bad token"}"#, "refused"),
        (400, r#"{"__type":"KMSAccessDeniedException","message":"key"}"#, "refused"),
    ];
    for (status, body, expected) in cases {
        let kinesis = kinesis(status, body).await;
        let fault = kinesis.records("iterator", 10).await.unwrap_err();
        assert_eq!(name(&fault), expected, "{status} {body}");
        let fault = kinesis.iterator("shardId-0", &IteratorFrom::TrimHorizon).await.unwrap_err();
        assert_eq!(name(&fault), expected, "{status} {body}");
        let error = fault.into_error();
        let is_passing = matches!(expected, "busy" | "expired");
        assert_eq!(error.kind() == ErrorKind::Unavailable, is_passing, "{error}");
        assert!(error.to_string().contains("stream intake"), "{error}");
    }
}

#[tokio::test]
async fn a_message_says_what_failed_and_why() {
    let body =
        r#"{"__type":"AccessDeniedException","message":"User x is not authorized to perform kinesis:ListShards"}"#;
    let fault = list_all(&kinesis(400, body).await, Filter::All).await.unwrap_err();
    let text = fault.into_error().to_string();
    assert!(text.starts_with("could not list the shards of the kinesis stream intake"), "{text}");
    assert!(text.contains("User x is not authorized to perform kinesis:ListShards"), "{text}");
}

#[tokio::test]
async fn a_service_that_is_not_there_is_busy() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let kinesis = Kinesis::new(&config_of(&endpoint).await, "intake");
    assert_eq!(name(&kinesis.records("iterator", 10).await.unwrap_err()), "busy");
    assert_eq!(name(&kinesis.retention().await.unwrap_err()), "busy");
}

#[tokio::test]
async fn a_next_page_is_asked_for_by_its_token_alone() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let kinesis = Kinesis::new(&config_of(&endpoint).await, "intake");
    let asked = async {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"}") {
            socket.read_buf(&mut request).await.unwrap();
        }
        let text = String::from_utf8(request).unwrap();
        let body = text.split("\r\n\r\n").nth(1).unwrap().to_owned();
        socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\n{\"Shards\":[]}").await.unwrap();
        body
    };
    let both = async { tokio::join!(asked, kinesis.list_shards(ListPage::Next("token"))) };
    let (body, page) = tokio::time::timeout(Duration::from_secs(20), both).await.unwrap();
    assert_eq!(body, r#"{"NextToken":"token"}"#);
    assert!(page.unwrap().shards.is_empty());
}
