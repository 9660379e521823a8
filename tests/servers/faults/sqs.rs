//! What SQS may do with messages, and seldom does.

use std::io;

use serde_json::{Value, json};

use super::Shared;
use super::http::Answer;
use super::operation::{Fault, Operation, Request};

/// How long a message stays invisible, whatever was asked for: it comes again while it is being worked on.
const VISIBILITY_SECONDS: u32 = 4;

/// Messages that an answer may have.
const MESSAGES_MAX: usize = 10;

/// Messages that an answer does have, as when the queue's servers hold few each; and how long it is held back for them.
const MESSAGES_A_TIME: u32 = 2;
const POLL_SECONDS: u32 = 1;

/// What the receipts of messages begin with that only the proxy has sent.
const AGAIN: &str = "again-";

/// Asks the server. Receipts that it does not know are dealt with here.
pub fn ask(shared: &Shared, request: &Request) -> io::Result<Answer> {
    let mut asked: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    if request.operation == Operation::Receive {
        asked["VisibilityTimeout"] = json!(VISIBILITY_SECONDS);
        asked["MaxNumberOfMessages"] = json!(MESSAGES_A_TIME);
        asked["WaitTimeSeconds"] = json!(POLL_SECONDS);
        let answer = request.head.forward(shared.target, asked.to_string().as_bytes())?;
        let given: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let messages = given["Messages"].as_array().cloned().unwrap_or_default();
        shared.memory().messages.extend(messages);
        return Ok(answer);
    }
    batch(shared, request, &[], false)
}

/// Has a call fail in part; tells whether there was something to fail.
pub fn fail(shared: &Shared, fault: Fault, request: &Request) -> io::Result<(Answer, bool)> {
    if matches!(fault, Fault::InvalidReceipt | Fault::PartialBatch) {
        let asked: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let entries = asked["Entries"].as_array().cloned().unwrap_or_default();
        // Every other message, and the only one.
        let failing: Vec<_> = entries.iter().step_by(2).map(|entry| entry["Id"].clone()).collect();
        return Ok((batch(shared, request, &failing, fault == Fault::InvalidReceipt)?, true));
    }
    let before = shared.memory().messages.clone();
    let mut answer = ask(shared, request)?;
    let mut given: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let mut messages = given["Messages"].as_array().cloned().unwrap_or_default();
    if fault == Fault::Redelivered {
        let room = MESSAGES_MAX.saturating_sub(messages.len());
        for (at, message) in before.iter().rev().take(room).enumerate() {
            let mut again = message.clone();
            again["ReceiptHandle"] = json!(format!("{AGAIN}{}-{at}", before.len()));
            messages.push(again);
        }
    }
    if messages.len() < 2 && fault == Fault::Shuffled || before.is_empty() && fault == Fault::Redelivered {
        return Ok((answer, false));
    }
    messages.reverse();
    given["Messages"] = Value::Array(messages);
    answer.body = given.to_string().into_bytes();
    Ok((answer, true))
}

/// Passes a batch of receipts on, without those that shall fail and those that the server does not know.
fn batch(shared: &Shared, request: &Request, failing: &[Value], by_sender: bool) -> io::Result<Answer> {
    let mut asked: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let entries = asked["Entries"].as_array().cloned().unwrap_or_default();
    let is_ours = |entry: &Value| entry["ReceiptHandle"].as_str().is_some_and(|receipt| receipt.starts_with(AGAIN));
    let mut successful = Vec::new();
    let mut failed = Vec::new();
    let mut passed = Vec::new();
    for mut entry in entries {
        if failing.contains(&entry["Id"]) {
            let code = if by_sender { "ReceiptHandleIsInvalid" } else { "InternalError" };
            failed.push(json!({ "Id": entry["Id"], "SenderFault": by_sender, "Code": code, "Message": "injected" }));
        } else if is_ours(&entry) {
            successful.push(json!({ "Id": entry["Id"] }));
        } else {
            if request.operation == Operation::Extend {
                entry["VisibilityTimeout"] = json!(VISIBILITY_SECONDS);
            }
            passed.push(entry);
        }
    }
    let mut answer = Answer::new(200, "application/x-amz-json-1.0", "");
    if !passed.is_empty() {
        asked["Entries"] = Value::Array(passed);
        answer = request.head.forward(shared.target, asked.to_string().as_bytes())?;
        if answer.status != 200 {
            return Ok(answer);
        }
        let given: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        successful.extend(given["Successful"].as_array().cloned().unwrap_or_default());
        failed.extend(given["Failed"].as_array().cloned().unwrap_or_default());
    }
    answer.body = json!({ "Successful": successful, "Failed": failed }).to_string().into_bytes();
    Ok(answer)
}
