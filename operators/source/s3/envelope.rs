//! What a message of the queue says, whoever wrapped it.
//!
//! S3 writes to a queue directly, through SNS (wrapped or raw), or through
//! EventBridge; the content tells which. Formats: "Event message structure" of
//! the Amazon S3 User Guide, and "Amazon S3 event message structure for
//! EventBridge". Keys are form-url-encoded in the first, plain in the second.

use percent_encoding::percent_decode_str;
use serde_json::Value;

/// The objects that a message announces.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Notice {
    /// Objects that were created.
    pub objects: Vec<Announced>,
    /// What cannot be understood, one reason each.
    pub faults: Vec<String>,
    /// Events that need no work: a test event, a removal.
    pub ignored: usize,
}

/// An object that was created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    /// The bucket's name.
    pub bucket: String,
    /// The key, decoded.
    pub key: String,
    /// The version, where the bucket keeps versions.
    pub version: Option<String>,
    /// The entity tag, without quotes.
    pub etag: Option<String>,
    /// Orders the events of one key; compare it by [`Announced::sequence`].
    pub sequencer: Option<String>,
    /// When it was created (RFC 3339, UTC).
    pub time: String,
    /// Length in bytes, if the event tells.
    pub size: Option<u64>,
}

impl Announced {
    /// Names this content: another one under the same key has another name.
    pub fn partition(&self) -> String {
        let version = self.version.as_ref().or(self.etag.as_ref()).or(self.sequencer.as_ref());
        format!("s3://{}/{}#{}", self.bucket, self.key, version.map_or(self.time.as_str(), String::as_str))
    }

    /// Gives a text that sorts the events of one key: sequencers are hexadecimal, of any length.
    pub fn sequence(&self) -> String {
        format!("{:0>64}", self.sequencer.as_deref().unwrap_or_default().to_ascii_uppercase())
    }

    fn is_folder_mark(&self) -> bool {
        self.key.ends_with('/') && self.size == Some(0)
    }
}

/// Reads the body of a message.
pub fn parse(body: &str) -> Notice {
    let mut notice = Notice::default();
    match serde_json::from_str(body) {
        Ok(value) => notice.add(&value, true),
        Err(e) => notice.faults.push(format!("the message is not JSON: {e}")),
    }
    notice
}

impl Notice {
    fn add(&mut self, message: &Value, may_be_wrapped: bool) {
        if let Some(records) = message.get("Records").and_then(Value::as_array) {
            for record in records {
                self.add_record(record);
            }
        } else if text(message, "Event") == Some("s3:TestEvent") {
            self.ignored += 1;
        } else if let (Some("Notification"), Some(inner), true) =
            (text(message, "Type"), text(message, "Message"), may_be_wrapped)
        {
            match serde_json::from_str(inner) {
                Ok(inner) => self.add(&inner, false),
                Err(e) => self.faults.push(format!("the SNS notification holds no JSON: {e}")),
            }
        } else if let (Some("aws.s3"), Some(kind)) = (text(message, "source"), text(message, "detail-type")) {
            if kind == "Object Created" { self.add_bridged(message) } else { self.ignored += 1 }
        } else {
            self.faults.push("the message is no S3 event, neither by itself nor from SNS or EventBridge".into());
        }
    }

    fn add_record(&mut self, record: &Value) {
        let name = text(record, "eventName").unwrap_or_default();
        let version = text(record, "eventVersion").unwrap_or_default();
        if !version.starts_with("2.") || record.get("s3").is_none() {
            return self.faults.push(format!("a record of version `{version}` is no S3 event of version 2"));
        }
        if !name.trim_start_matches("s3:").starts_with("ObjectCreated:") {
            self.ignored += 1;
            return;
        }
        let (bucket, object) = (&record["s3"]["bucket"], &record["s3"]["object"]);
        let (Some(bucket), Some(key)) = (text(bucket, "name"), text(object, "key")) else {
            return self.faults.push("an S3 event names no bucket or no key".into());
        };
        let spaced = key.replace('+', " ");
        let Ok(key) = percent_decode_str(&spaced).decode_utf8() else {
            return self.faults.push(format!("the key {key} is not UTF-8"));
        };
        self.announce(Announced {
            bucket: bucket.to_owned(),
            key: key.into_owned(),
            version: version_of(object, "versionId"),
            etag: etag_of(object, "eTag"),
            sequencer: text(object, "sequencer").map(str::to_owned),
            time: text(record, "eventTime").unwrap_or_default().to_owned(),
            size: object.get("size").and_then(Value::as_u64),
        });
    }

    fn add_bridged(&mut self, message: &Value) {
        let (bucket, object) = (&message["detail"]["bucket"], &message["detail"]["object"]);
        let (Some(bucket), Some(key)) = (text(bucket, "name"), text(object, "key")) else {
            return self.faults.push("an event from EventBridge names no bucket or no key".into());
        };
        self.announce(Announced {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            version: version_of(object, "version-id"),
            etag: etag_of(object, "etag"),
            sequencer: text(object, "sequencer").map(str::to_owned),
            time: text(message, "time").unwrap_or_default().to_owned(),
            size: object.get("size").and_then(Value::as_u64),
        });
    }

    fn announce(&mut self, object: Announced) {
        if object.is_folder_mark() { self.ignored += 1 } else { self.objects.push(object) }
    }
}

fn text<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    value.get(name).and_then(Value::as_str)
}

/// Gives the version; a bucket whose versions are suspended writes `null`, again and again.
fn version_of(object: &Value, name: &str) -> Option<String> {
    text(object, name).filter(|version| !version.is_empty() && *version != "null").map(str::to_owned)
}

fn etag_of(object: &Value, name: &str) -> Option<String> {
    text(object, name).map(|etag| etag.trim_matches('"')).filter(|etag| !etag.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(event: &str, key: &str) -> Value {
        let object = json!({"key": key, "size": 3, "eTag": "e", "versionId": "v", "sequencer": "0A"});
        json!({"eventVersion": "2.3", "eventSource": "aws:s3", "eventTime": "2026-01-01T00:00:00.000Z",
            "eventName": event, "s3": {"bucket": {"name": "b"}, "object": object}})
    }

    fn keys(notice: &Notice) -> Vec<&str> {
        notice.objects.iter().map(|object| object.key.as_str()).collect()
    }

    #[test]
    fn events_are_read_from_every_envelope() {
        let event = json!({"Records": [
            record("ObjectCreated:Put", "a+b/%2B%C3%BC.json"), record("ObjectRemoved:Delete", "gone"),
            record("ObjectCreated:CompleteMultipartUpload", "c"), record("ObjectCreated:Put", "%FF"),
        ]});
        let direct = parse(&event.to_string());
        assert_eq!((keys(&direct), direct.ignored, direct.faults.len()), (vec!["a b/+ü.json", "c"], 1, 1));
        assert_eq!(direct.objects[0].partition(), "s3://b/a b/+ü.json#v");
        let wrapped = json!({"Type": "Notification", "TopicArn": "t", "Message": event.to_string()});
        assert_eq!(parse(&wrapped.to_string()), direct);
        let bridged = json!({"source": "aws.s3", "detail-type": "Object Created", "time": "2026-01-01T00:00:00Z",
            "detail": {"bucket": {"name": "b"}, "object": {"key": "a+b%20c", "etag": "e", "sequencer": "1"}}});
        let bridged = parse(&bridged.to_string());
        assert_eq!(bridged.objects[0].partition(), "s3://b/a+b%20c#e");
        assert!(bridged.faults.is_empty());
    }

    /// Reads a message of the kind that the documents of its service show (tests/fixtures/notices).
    macro_rules! documented {
        ($name:literal) => {
            parse(include_str!(concat!("../../../tests/fixtures/notices/", $name, ".json")))
        };
    }

    #[test]
    fn the_messages_of_the_documents_are_read() {
        let direct = documented!("s3");
        let expected = Announced {
            bucket: "landing".into(),
            key: "red flower.jpg".into(),
            version: Some("096fKKXTRTtl3on89fVO.nfljtsv6qko".into()),
            etag: Some("d41d8cd98f00b204e9800998ecf8427e".into()),
            sequencer: Some("0055AED6DCD90281E5".into()),
            time: "1970-01-01T00:00:00.000Z".into(),
            size: Some(1024),
        };
        assert_eq!(direct, Notice { objects: vec![expected], ..Notice::default() });
        assert_eq!(documented!("sns"), direct);
        let bridged = documented!("eventbridge");
        assert_eq!(bridged.objects[0].partition(), "s3://landing/red flower+50%.jpg#IYV3p45BT0ac8hjHg1houSdS1a.Mro8e");
        assert_eq!((bridged.objects.len(), bridged.ignored, bridged.faults.len()), (1, 0, 0));
        for ignored in [documented!("s3-test"), documented!("s3-glacier"), documented!("eventbridge-deleted")] {
            assert_eq!(ignored, Notice { ignored: 1, ..Notice::default() });
        }
    }

    #[test]
    fn minor_versions_of_events_do_not_matter_and_major_ones_do() {
        for (version, is_read) in
            [("2.0", true), ("2.1", true), ("2.3", true), ("2.97", true), ("3.0", false), ("20.1", false)]
        {
            let mut event = record("ObjectCreated:Copy", "k");
            event["eventVersion"] = json!(version);
            let notice = parse(&json!({"Records": [event]}).to_string());
            assert_eq!((notice.objects.len(), notice.faults.len()), if is_read { (1, 0) } else { (0, 1) }, "{version}");
        }
    }

    #[test]
    fn what_needs_no_work_is_ignored_and_what_is_unknown_is_a_fault() {
        let test = json!({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "b"}).to_string();
        let removed = json!({"source": "aws.s3", "detail-type": "Object Deleted", "detail": {}}).to_string();
        for body in [&test, &json!({"Type": "Notification", "Message": test}).to_string(), &removed] {
            assert_eq!(parse(body), Notice { ignored: 1, ..Notice::default() }, "{body}");
        }
        let unknown = ["", "{", "{}", "[1]", "{\"Records\":[{}]}", "{\"Type\":\"Notification\",\"Message\":\"x\"}"];
        for body in unknown {
            let notice = parse(body);
            assert_eq!((notice.objects.len(), notice.faults.len()), (0, 1), "{body}");
        }
    }

    #[test]
    fn sequencers_are_compared_as_numbers() {
        let mut object = parse(&json!({"Records": [record("ObjectCreated:Put", "k")]}).to_string()).objects.remove(0);
        let short = object.sequence();
        object.sequencer = Some("0055AED6DCD90281E5".into());
        assert!(short < object.sequence());
    }
}
