//! What gives out AWS credentials: the Security Token Service, the agent of a container, and a machine (IMDSv2).
//!
//! Access keys tell where they come from: `ROLE` and the role's name in capitals, `CONTAINER`, `MACHINE`.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::json;

use super::faults::http::{Answer, Head};

/// What a container has to show its agent.
pub const CONTAINER_TOKEN: &str = "container-token";

const MACHINE_TOKEN: &str = "machine-token";
const EXPIRATION: &str = "2099-01-01T00:00:00Z";

/// A running server. It ends with the process.
pub struct Identity {
    /// Where it listens.
    pub port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Identity {
    /// Starts one.
    pub fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("no port of loopback is free");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let heard = asked.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let heard = heard.clone();
                std::thread::spawn(move || drop(serve(client, &heard)));
            }
        });
        Self { port, asked }
    }

    /// Gives its URL.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Tells what it was asked for, each with the key that it was asked with.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn serve(mut client: TcpStream, asked: &Mutex<Vec<String>>) -> io::Result<()> {
    let head = Head::peek(&client)?;
    let body = head.read(&mut client, head.body_bytes())?;
    let form: Vec<(String, String)> =
        url::form_urlencoded::parse(&body).map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
    let given = |name: &str| form.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value.as_str());
    let key = head.header("authorization").and_then(|text| text.split_once("Credential=")?.1.split('/').next());
    let json = |key: &str| {
        let found = json!({ "Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": key, "SecretAccessKey": "secret",
            "Token": "token", "Expiration": EXPIRATION, "LastUpdated": "2026-01-01T00:00:00Z" });
        Answer::new(200, "application/json", found.to_string())
    };
    let text = |text: &str| Answer::new(200, "text/plain", text);
    let is_machine = head.header("x-aws-ec2-metadata-token") == Some(MACHINE_TOKEN);
    let (what, answer) = match (head.method.as_str(), head.path.trim_end_matches('/')) {
        ("PUT", "/latest/api/token") => {
            let mut answer = text(MACHINE_TOKEN);
            answer.headers.push(("x-aws-ec2-metadata-token-ttl-seconds".to_owned(), "21600".to_owned()));
            ("token".to_owned(), answer)
        }
        ("GET", "/latest/meta-data/iam/security-credentials") if is_machine => ("profile".to_owned(), text("machine")),
        ("GET", "/latest/meta-data/iam/security-credentials/machine") if is_machine => {
            ("machine".to_owned(), json("MACHINE"))
        }
        ("GET", "/latest/meta-data/placement/region") if is_machine => ("region".to_owned(), text(super::REGION)),
        ("GET", "/container") if head.header("authorization") == Some(CONTAINER_TOKEN) => {
            ("container".to_owned(), json("CONTAINER"))
        }
        ("POST", "") => {
            let (action, role) = (given("Action"), given("RoleArn").rsplit('/').next().unwrap_or_default());
            let by = key.unwrap_or_else(|| given("WebIdentityToken"));
            let with = [given("ExternalId"), given("RoleSessionName")].join(" ");
            (format!("{action} {role} by {by} with {with}"), assumed(action, role))
        }
        _ => (format!("{} {}", head.method, head.path), Answer::new(404, "text/plain", "not found")),
    };
    asked.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    answer.send(&mut client, usize::MAX)
}

fn assumed(action: &str, role: &str) -> Answer {
    let body = format!(
        "<{action}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{action}Result>\
         <AssumedRoleUser><Arn>arn:aws:sts::111122223333:assumed-role/{role}/s</Arn>\
         <AssumedRoleId>AROA:s</AssumedRoleId></AssumedRoleUser>\
         <Credentials><AccessKeyId>ROLE{}</AccessKeyId><SecretAccessKey>secret</SecretAccessKey>\
         <SessionToken>token</SessionToken><Expiration>{EXPIRATION}</Expiration></Credentials>\
         </{action}Result><ResponseMetadata><RequestId>r</RequestId></ResponseMetadata></{action}Response>",
        role.to_uppercase()
    );
    Answer::new(200, "text/xml", body)
}
