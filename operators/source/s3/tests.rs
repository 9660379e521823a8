//! The source against a server that speaks S3 and SQS.

use std::collections::BTreeMap;
use std::io::Write;

use object_store::ObjectStoreExt;
use serde_json::json;

use super::*;
use crate::clock::SystemClock;
use crate::store::{self, Backend, Store};
use crate::testing::clock::ManualClock;
use crate::testing::ministack::Ministack;
use crate::testing::source::{conforms, read};

const VISIBILITY: Duration = Duration::from_secs(60);

struct Server {
    ministack: Ministack,
    bucket: Store,
    sqs: aws_sdk_sqs::Client,
}

impl Server {
    fn start() -> Self {
        let ministack = Ministack::start();
        let bucket = ministack.bucket("landing");
        let sqs = aws_sdk_sqs::Client::new(&ministack.config());
        Self { ministack, bucket, sqs }
    }

    fn source(&self, queue: &str, visibility: Duration) -> S3Source {
        self.source_with(queue, visibility, ManualClock::at(1_700_000_000_000_000))
    }

    fn source_with(&self, queue: &str, visibility: Duration, clock: SharedClock) -> S3Source {
        S3Source::new(self.settings(queue, visibility), clock, Some(self.ministack.config())).unwrap()
    }

    fn settings(&self, queue: &str, visibility: Duration) -> S3Settings {
        S3Settings {
            name: "uploads".into(),
            queue: queue.into(),
            allow: vec!["s3://landing/in/".into()],
            bucket_owner: None,
            in_flight: 3,
            framing: Framing::Json,
            record_bytes_max: 1024 * 1024,
            object_bytes_max: None,
            on_poison: PoisonPolicy::default(),
            visibility,
            reconcile: None,
            aws: Default::default(),
        }
    }

    /// Puts an object, and gives an event that announces it.
    async fn put(&self, key: &str, content: Vec<u8>) -> serde_json::Value {
        self.bucket.put(key, content.into()).await.unwrap();
        let Backend::Object { objects, .. } = self.bucket.backend() else { panic!("it is a bucket") };
        let options = object_store::GetOptions { head: true, ..Default::default() };
        let meta = objects.get_opts(&store::join(&object_store::path::Path::ROOT, key), options).await.unwrap().meta;
        event(key, meta.e_tag.as_deref().unwrap_or_default())
    }

    async fn send(&self, queue: &str, body: &serde_json::Value) {
        self.sqs.send_message().queue_url(queue).message_body(body.to_string()).send().await.unwrap();
    }

    /// Counts the messages that wait, and those that are held.
    async fn messages(&self, queue: &str) -> (u32, u32) {
        use aws_sdk_sqs::types::QueueAttributeName as Name;
        let call = self.sqs.get_queue_attributes().queue_url(queue).attribute_names(Name::All);
        let counts = call.send().await.unwrap().attributes.unwrap();
        let count = |name| counts.get(&name).map_or(0, |count| count.parse().unwrap());
        (count(Name::ApproximateNumberOfMessages), count(Name::ApproximateNumberOfMessagesNotVisible))
    }
}

fn event(key: &str, etag: &str) -> serde_json::Value {
    let object = json!({"key": key, "eTag": etag.trim_matches('"'), "sequencer": "01"});
    json!({"eventVersion": "2.1", "eventSource": "aws:s3", "eventTime": "2026-01-01T00:00:00.000Z",
        "eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": "landing"}, "object": object}})
}

fn lines(from: usize, count: usize) -> Vec<u8> {
    (from..from + count)
        .flat_map(|n| format!("{{\"n\":{n},\"padding\":\"................\"}}\n").into_bytes())
        .collect()
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn the_source_conforms() {
    let server = Server::start();
    let large = server.put("in/large.json", lines(0, 60_000)).await;
    let packed = server.put("in/packed.gz", [gzip(&lines(0, 30_000)), gzip(&lines(30_000, 9))].concat()).await;
    let small = server.put("in/small.json", lines(7, 3)).await;
    let bodies = [json!({"Records": [large, small]}), json!({"Records": [packed]}), json!({"Records": [small]})];
    let (server, bodies) = (&server, &bodies);
    let mut queues = 0;
    let seen = conforms(|_| {
        queues += 1;
        let name = format!("conformance-{queues}");
        async move {
            let queue = server.ministack.queue(&name).await;
            for body in bodies {
                server.send(&queue, body).await;
            }
            Box::new(server.source(&queue, VISIBILITY)) as _
        }
    })
    .await;
    let texts: BTreeMap<_, _> =
        seen.partitions().iter().map(|p| (p.split('#').next().unwrap(), seen.text(p))).collect();
    let spaced = |content: Vec<u8>| String::from_utf8(content).unwrap().replace('\n', " ");
    assert!(texts["s3://landing/in/large.json"] == spaced(lines(0, 60_000)));
    assert!(texts["s3://landing/in/packed.gz"] == spaced(lines(0, 30_009)));
    assert!(texts["s3://landing/in/small.json"] == spaced(lines(7, 3)), "a repeated notification is read once");
}

#[tokio::test]
async fn messages_are_deleted_only_when_all_their_objects_are_committed() {
    let server = Server::start();
    let queue = server.ministack.queue("announced").await;
    server.ministack.announce("landing", "announced");
    server.put("in/a b+c/ü.json", lines(0, 3)).await;
    server.put("in/d.json", lines(3, 3)).await;
    let mut source = server.source(&queue, VISIBILITY);
    let (seen, _) = read(&mut source, &Cut::default()).await;
    let texts: Vec<_> = seen.partitions().iter().map(|p| p.split('#').next().unwrap().to_owned()).collect();
    assert_eq!(texts, ["s3://landing/in/a b+c/ü.json", "s3://landing/in/d.json"], "keys are decoded");
    let cut = source.cut();
    assert_eq!(server.messages(&queue).await.1, 2, "nothing is deleted before it is committed");
    source.committed(&cut).await.unwrap();
    assert_eq!(server.messages(&queue).await, (0, 0));

    // Another queue: the first source still waits for messages of its own.
    let queue = server.ministack.queue("again").await;
    let again = server.put("in/d.json", lines(3, 3)).await;
    server.send(&queue, &json!({"Records": [again]})).await;
    let (seen, _) = read(&mut server.source(&queue, VISIBILITY), &cut).await;
    assert!(seen.partitions().is_empty(), "after a restart, an object that is done is not read again");
    assert_eq!(server.messages(&queue).await, (0, 0), "and its message is deleted");
}

#[tokio::test]
async fn poison_is_rejected_and_blocks_nothing() {
    let server = Server::start();
    let queue = server.ministack.queue("poison").await;
    let good = server.put("in/good.json", lines(0, 3)).await;
    let broken = server.put("in/broken.gz", gzip(&lines(0, 9999))[..1000].to_vec()).await;
    let outside = server.put("private/salaries.json", lines(0, 3)).await;
    let mut overwritten = good.clone();
    overwritten["s3"]["object"]["eTag"] = json!("another");
    server.send(&queue, &json!({"Records": [outside, broken, good, overwritten]})).await;
    server.send(&queue, &json!("what is this")).await;
    server.send(&queue, &json!({"Service": "Amazon S3", "Event": "s3:TestEvent"})).await;
    let mut source = server.source(&queue, VISIBILITY);
    let (seen, _) = read(&mut source, &Cut::default()).await;
    assert!(seen.partitions().iter().any(|p| p.starts_with("s3://landing/in/good.json#")));
    let mut reasons: Vec<_> = seen.rejects.iter().map(|(_, _, reason)| reason.as_str()).collect();
    reasons.sort_unstable();
    let wanted = ["ends too early", "was overwritten", "outside of the prefixes", "the message is no S3 event"];
    assert_eq!(reasons.len(), wanted.len(), "{reasons:?}");
    for part in wanted {
        assert!(reasons.iter().any(|reason| reason.contains(part)), "{part}: {reasons:?}");
    }
    let cut = source.cut();
    source.committed(&cut).await.unwrap();
    assert_eq!(server.messages(&queue).await, (0, 0));
}

#[tokio::test]
async fn a_missing_object_is_tried_again_before_it_is_rejected() {
    let server = Server::start();
    let queue = server.ministack.queue("missing").await;
    server.send(&queue, &json!({"Records": [event("in/not-there.json", "e")]})).await;
    let mut source = server.source(&queue, Duration::from_secs(1));
    source.open(&Cut::default()).await.unwrap();
    let mut idle = 0;
    let reason = loop {
        match source.next().await.unwrap() {
            SourceEvent::Reject { partition, reason, .. } => {
                assert_eq!(&*partition, "s3://landing/in/not-there.json#e");
                break reason;
            }
            SourceEvent::Idle => idle += 1,
            other => panic!("{other:?}"),
        }
        source.maintain().await.unwrap();
        assert!(idle < 60, "it is given up some time");
    };
    assert!(reason.contains("does not exist") && idle >= 2, "{reason}, {idle}");
    let cut = source.cut();
    source.committed(&cut).await.unwrap();
    assert_eq!(server.messages(&queue).await, (0, 0));
}

#[tokio::test]
async fn each_kind_of_poison_has_its_own_policy() {
    let server = Server::start();
    let queue = server.ministack.queue("policy").await;
    let mut broken = gzip(&lines(0, 60_000));
    broken.truncate(broken.len() - 9);
    let broken = server.put("in/broken.gz", broken).await;
    server.send(&queue, &json!({"Records": [broken]})).await;
    server.send(&queue, &json!({"Records": [event("in/not-there.json", "e")]})).await;
    server.send(&queue, &json!("what is this")).await;
    let policy =
        PoisonPolicy { unreadable: OnPoison::Retry, missing: OnPoison::Fail, receives: 1, ..PoisonPolicy::default() };
    let settings = S3Settings { on_poison: policy, ..server.settings(&queue, Duration::from_secs(1)) };
    let open =
        || S3Source::new(settings.clone(), ManualClock::at(1_700_000_000_000_000), Some(server.ministack.config()));
    let mut source = open().unwrap();
    source.open(&Cut::default()).await.unwrap();
    let (mut failures, mut quarantined, mut read) = (Vec::new(), Vec::new(), 0);
    let started = std::time::Instant::now();
    while started.elapsed() < Duration::from_secs(8) {
        match source.next().await {
            Ok(SourceEvent::Reject { reason, .. }) => quarantined.push(reason),
            Ok(SourceEvent::Chunk(Chunk { payload: Payload::Framed { offset, bytes, .. }, .. })) => {
                assert_eq!(offset, read, "what was read of an object is not read again");
                read += bytes.len() as u64;
            }
            Ok(_) => {}
            Err(error) => failures.push(error.to_string()),
        }
        source.maintain().await.unwrap();
    }
    let [failure] = &failures[..] else { panic!("{failures:?}") };
    assert!(failure.contains("does not exist") && failure.contains("`on_poison: { missing: fail }`"), "{failure}");
    let [reason] = &quarantined[..] else { panic!("{quarantined:?}") };
    assert!(reason.contains("the message is no S3 event"), "{reason}");
    assert!(read > 0);
    let cut = source.cut();
    source.committed(&cut).await.unwrap();
    let (waiting, held) = server.messages(&queue).await;
    assert_eq!(waiting + held, 2, "what is tried again, or ended the run, is not deleted");
    assert!(!cut.advanced.keys().any(|name| name.contains("not-there")), "{cut:?}");
}

#[tokio::test]
async fn a_message_that_is_held_does_not_become_visible() {
    let server = Server::start();
    let queue = server.ministack.queue("held").await;
    let good = server.put("in/good.json", lines(0, 3)).await;
    server.send(&queue, &json!({"Records": [good]})).await;
    let mut source = server.source_with(&queue, Duration::from_secs(4), Arc::new(SystemClock));
    read(&mut source, &Cut::default()).await;
    // Polling stands still from here on, as under backpressure; only `maintain` is called.
    source.receiving = None;
    for _ in 0..6 {
        // Visibility is counted by the server's own clock.
        tokio::time::sleep(Duration::from_secs(1)).await;
        source.maintain().await.unwrap();
        assert_eq!(server.messages(&queue).await, (0, 1), "the message is kept invisible");
    }
}

#[tokio::test]
async fn objects_whose_message_is_lost_are_found_once() {
    let server = Server::start();
    let queue = server.ministack.queue("lossy").await;
    let announced = server.put("in/announced.json", lines(0, 3)).await;
    let late = server.put("in/late.json", lines(3, 3)).await;
    for n in 0..21 {
        server.put(&format!("in/lost/{n:04}.json"), lines(n, 1)).await;
    }
    server.put("in/empty.json", Vec::new()).await;
    server.put("private/salaries.json", lines(0, 3)).await;
    server.send(&queue, &json!({"Records": [announced]})).await;
    // Objects younger than this are left to their messages.
    let every = Duration::from_secs(2);
    tokio::time::sleep(every).await;
    let settings = S3Settings { reconcile: Some(every), ..server.settings(&queue, VISIBILITY) };
    let source = || S3Source::new(settings.clone(), Arc::new(SystemClock), Some(server.ministack.config())).unwrap();

    let mut first = source();
    let (seen, _) = read(&mut first, &Cut::default()).await;
    assert_eq!(seen.partitions().len(), 23, "several pages of objects, each once");
    assert!(seen.partitions().iter().all(|name| name.starts_with("s3://landing/in/")));
    let cut = first.cut();
    first.committed(&cut).await.unwrap();

    // The next pass, and a message that comes late, find nothing new; nor do they after a restart.
    tokio::time::sleep(every).await;
    server.send(&queue, &json!({"Records": [late]})).await;
    let again = server.put("in/again.json", lines(0, 1)).await;
    server.send(&queue, &json!({"Records": [again]})).await;
    let (seen, _) = read(&mut source(), &cut).await;
    let names: Vec<_> = seen.partitions().iter().map(|p| p.split('#').next().unwrap().to_owned()).collect();
    assert_eq!(names, ["s3://landing/in/again.json"]);
}

/// Keys that people have: with spaces, plus, percent, unicode, two slashes in a row, and one at either end.
const KEYS: [&str; 9] = [
    "in/a b.json",
    "in/a+b.json",
    "in/100%.json",
    "in/%2B%20.json",
    "in/ü/日本.json",
    "in//twice.json",
    "in/end/",
    "in/double//",
    "in/&<>'\".json",
];

#[tokio::test]
async fn every_key_is_read_whether_it_was_announced_or_listed() {
    let server = Server::start();
    let queue = server.ministack.queue("keys").await;
    server.ministack.announce("landing", "keys");
    let store = requests::bucket(&server.ministack.config(), "landing", None).unwrap().build().unwrap();
    for (number, key) in KEYS.iter().enumerate() {
        store.put(&keys::path_of(key).unwrap(), lines(number, 1).into()).await.unwrap();
    }
    let every = Duration::from_secs(1);
    tokio::time::sleep(every).await;
    let expected: BTreeMap<_, _> = KEYS
        .iter()
        .enumerate()
        .map(|(number, key)| {
            (format!("s3://landing/{key}"), String::from_utf8(lines(number, 1)).unwrap().replace('\n', " "))
        })
        .collect();
    let listed = server.ministack.queue("nothing").await;
    for (queue, reconcile) in [(&queue, None), (&listed, Some(every))] {
        let mut settings = S3Settings { reconcile, ..server.settings(queue, VISIBILITY) };
        // A prefix need not end between two parts of a key.
        settings.allow = vec!["s3://landing/i".into()];
        let mut source = S3Source::new(settings, Arc::new(SystemClock), Some(server.ministack.config())).unwrap();
        let (seen, _) = read(&mut source, &Cut::default()).await;
        assert!(seen.rejects.is_empty(), "{:?}", seen.rejects);
        let texts: BTreeMap<_, _> = seen
            .partitions()
            .iter()
            .map(|name| (name.split_once('#').unwrap().0.to_owned(), seen.text(name).to_owned()))
            .collect();
        assert_eq!(texts, expected);
    }
}

#[test]
fn of_one_key_the_events_are_taken_in_their_order() {
    let object = |key: &str, time: &str, sequencer: &str| {
        let mut event = event(key, sequencer);
        event["eventTime"] = json!(time);
        event["s3"]["object"]["sequencer"] = json!(sequencer);
        let announced = envelope::parse(&json!({"Records": [event]}).to_string()).objects.remove(0);
        let (name, body) = (announced.partition().into(), Bytes::new());
        Object { name, announced, body, receives: 1, offset: 0, reader: None }
    };
    // Times are those of the requests, and do not order the events of a key; sequencers are of any length and case.
    let mut waiting = vec![
        object("k", "2026-01-01T00:00:01.000Z", "0055AED6DCD90281E6"),
        object("other", "2026-01-01T00:00:02.000Z", "01"),
        object("k", "2026-01-01T00:00:03.000Z", "55aed6dcd90281e5"),
        object("k", "2026-01-01T00:00:04.000Z", "9"),
    ];
    let mut order = Vec::new();
    while !waiting.is_empty() {
        order.push(waiting.swap_remove(object::first_of(&waiting)).announced.sequencer.unwrap());
    }
    assert_eq!(order, ["9", "55aed6dcd90281e5", "0055AED6DCD90281E6", "01"]);
}

#[test]
fn settings_that_allow_nothing_are_refused() {
    for allow in [vec![], vec!["landing/in".to_owned()]] {
        let settings = S3Settings {
            name: "uploads".into(),
            queue: "queue".into(),
            allow,
            bucket_owner: None,
            in_flight: 1,
            framing: Framing::Json,
            record_bytes_max: 1024,
            object_bytes_max: None,
            on_poison: PoisonPolicy::default(),
            visibility: VISIBILITY,
            reconcile: None,
            aws: Default::default(),
        };
        let error = S3Source::new(settings, Arc::new(SystemClock), None).err().unwrap();
        assert!(error.to_string().contains("s3://bucket/prefix"), "{error}");
    }
}

#[tokio::test]
async fn a_queue_that_is_not_there_is_an_error_of_the_file() {
    let server = Server::start();
    let queue = server.ministack.queue("there").await.replace("there", "not-there");
    let error = server.source(&queue, VISIBILITY).open(&Cut::default()).await.unwrap_err();
    assert_eq!(error.kind(), crate::ErrorKind::Config, "{error}");
    assert!(error.to_string().contains("not-there"), "{error}");
}

#[tokio::test]
async fn the_source_says_that_it_is_idle_though_next_is_dropped_often() {
    let server = Server::start();
    let queue = server.ministack.queue("dropped").await;
    let mut source = server.source(&queue, VISIBILITY);
    source.open(&Cut::default()).await.unwrap();
    let started = tokio::time::Instant::now();
    // An engine drops `next` whenever it has something else to ask of the source.
    while !matches!(tokio::time::timeout(Duration::from_millis(100), source.next()).await, Ok(Ok(SourceEvent::Idle))) {
        assert!(started.elapsed() < Duration::from_secs(20), "it never says that it is idle");
    }
}
