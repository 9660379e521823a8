//! The largest record that Kinesis takes, through the command. The emulators take a minute to put one, so it comes from a
//! stand-in that answers as the documents of the service say.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use serde_json::{Value, json};

use crate::balance::count;
use crate::world::{World, ask};

/// Bytes of the data of a record with its partition key, at most.
const RECORD_BYTES_MAX: usize = 10 * 1024 * 1024;

/// Serves a stream of one shard, a record in each answer; gives the port.
fn serve(records: Vec<Vec<u8>>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let port = listener.local_addr().expect("a listener has an address").port();
    let records = Arc::new(records);
    thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let records = records.clone();
            thread::spawn(move || {
                let mut socket = socket;
                let Some((call, body)) = request(&mut socket) else { return };
                let answer = answer(&call, &body, &records).to_string();
                let head = "HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.1\r\nConnection: close";
                let _ = write!(socket, "{head}\r\nContent-Length: {}\r\n\r\n{answer}", answer.len());
            });
        }
    });
    port
}

/// Reads a request: the call, and what it says.
fn request(socket: &mut TcpStream) -> Option<(String, Value)> {
    let (mut request, mut part) = (Vec::new(), [0; 4096]);
    loop {
        let read = socket.read(&mut part).ok().filter(|read| *read > 0)?;
        request.extend_from_slice(&part[..read]);
        let text = String::from_utf8_lossy(&request);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let call = head.lines().find_map(|line| line.split_once("Kinesis_20131202."))?.1.trim().to_owned();
        if let Ok(body) = serde_json::from_str(body) {
            return Some((call, body));
        }
    }
}

fn answer(call: &str, body: &Value, records: &[Vec<u8>]) -> Value {
    match call {
        "DescribeStreamSummary" => json!({"StreamDescriptionSummary": {"StreamName": "large", "StreamStatus": "ACTIVE",
            "StreamARN": "arn:aws:kinesis:us-east-1:123456789012:stream/large", "RetentionPeriodHours": 24,
            "StreamCreationTimestamp": 1.7e9, "EnhancedMonitoring": [], "OpenShardCount": 1}}),
        "ListShards" => json!({"Shards": [{"ShardId": "shardId-000000000000",
            "HashKeyRange": {"StartingHashKey": "0", "EndingHashKey": u128::MAX.to_string()},
            "SequenceNumberRange": {"StartingSequenceNumber": "0"}}]}),
        "GetShardIterator" => json!({"ShardIterator": "0"}),
        "GetRecords" => {
            let at: usize = body["ShardIterator"].as_str().expect("an iterator").parse().expect("one of ours");
            let record = records.get(at).map(|data| {
                json!({"SequenceNumber": format!("4959033827149025660855969253{at}"), "PartitionKey": "k",
                    "ApproximateArrivalTimestamp": 1.7e9, "Data": base64(data)})
            });
            let next = (at + 1).min(records.len());
            let lag_ms = if next < records.len() { 1000 } else { 0 };
            let records: Vec<_> = record.into_iter().collect();
            json!({"Records": records, "NextShardIterator": next.to_string(), "MillisBehindLatest": lag_ms})
        }
        other => panic!("{other} is not called"),
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let bits = three.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        let digit = |at: usize| char::from(DIGITS[(bits >> (18 - 6 * at) & 63) as usize]);
        out.extend((0..4).map(|at| if at <= three.len() { digit(at) } else { '=' }));
    }
    out
}

/// A document of so many bytes.
fn document(n: usize, bytes: usize) -> Vec<u8> {
    let (head, tail) = (format!("{{\"n\":{n},\"text\":\""), "\"}");
    [head.as_bytes(), &b"x".repeat(bytes - head.len() - tail.len()), tail.as_bytes()].concat()
}

#[test]
fn a_record_of_ten_mebibytes_comes_through_and_a_larger_one_goes_to_the_quarantine() {
    let largest = RECORD_BYTES_MAX - "k".len();
    // A stream may be told to take no more; the service takes none that is larger than the second.
    let port = serve(vec![document(0, 100), document(1, largest), document(2, RECORD_BYTES_MAX + 1), document(3, 100)]);
    let mut world = World::new().with_aws();
    world.set("AWS_ENDPOINT_URL_KINESIS", &format!("http://127.0.0.1:{port}"));
    let file = world.file(
        "large.yaml",
        "name: large\nlake: ./lake\nsources:\n  events:\n    kinesis: { stream: large }\n    columns: { n: int64 not null, \
         text: string }\nbronze:\n  events: { from: events }\n",
    );
    let report = world.run(&file, &["--until-idle", "2s"]);
    let source = &report["sources"]["events"];
    assert_eq!([count(source, "rows"), count(source, "quarantined")], [3, 1], "{report}");
    let text = |bytes: usize| bytes - "{\"n\":0,\"text\":\"\"}".len();
    let expected = [json!([0, text(100)]), json!([1, text(largest)]), json!([3, text(100)])];
    assert_eq!(ask(&world.path("lake"), "SELECT n, length(text) FROM bronze.events ORDER BY n"), expected);
    world.nexus(&["audit", &file.display().to_string()]).expect_code(0);
}
