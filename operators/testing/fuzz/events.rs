//! Envelopes and positions: aggregates of the producer library, messages of S3, and cuts.

use crate::position::Cut;

/// Any bytes as a record of Kinesis: as they are, as the protobuf of an aggregate, and as records to put into one.
#[cfg(feature = "kinesis")]
pub(super) fn kpl(data: &[u8]) {
    use bytes::Bytes;

    use crate::source::kinesis::kpl::{Content, encoder, looks_aggregated, open};

    let plain = Bytes::copy_from_slice(data);
    if !looks_aggregated(&plain) {
        assert_eq!(open(&plain, None), Content::Plain);
    }
    for record in [plain, encoder::seal(data)] {
        if let Content::Aggregate(records) = open(&record, None) {
            let bytes: usize = records.iter().map(|r| r.data.len()).sum();
            assert!(bytes <= record.len(), "{bytes} bytes come out of {}", record.len());
        }
    }
    let lossy: Vec<(String, &[u8])> =
        data.chunks(7).map(|part| (String::from_utf8_lossy(part).into_owned(), part)).collect();
    let records: Vec<(&str, Option<&str>, &[u8])> = lossy
        .iter()
        .map(|(key, data)| (key.as_str(), data.first().filter(|b| **b > 127).map(|_| "7"), *data))
        .collect();
    let Content::Aggregate(found) = open(&encoder::aggregate(&records), None) else {
        panic!("an aggregate is not seen as one")
    };
    let found: Vec<_> = found.iter().map(|r| (r.key.as_str(), &r.data[..])).collect();
    assert_eq!(found, records.iter().map(|(key, _, data)| (*key, *data)).collect::<Vec<_>>());
}

/// Any text as a message of S3.
#[cfg(feature = "s3")]
pub(super) fn s3_event(data: &[u8]) {
    use crate::source::s3::envelope::parse;

    let text = String::from_utf8_lossy(data);
    let notice = parse(&text);
    for object in &notice.objects {
        assert!(object.partition().starts_with(&format!("s3://{}/", object.bucket)));
        assert!(object.sequence().len() >= 64, "sequences of one length sort");
    }
    let is_empty = notice.objects.is_empty() && notice.faults.is_empty() && notice.ignored == 0;
    assert!(!is_empty || text.contains("Records"), "a message says nothing, and nothing is said of it");
}

/// Any text as two cuts, one behind the other.
pub(super) fn cut(data: &[u8]) {
    let mut cuts = data.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Cut>(line).ok());
    let Some(first) = cuts.next() else { return };
    let text = serde_json::to_vec(&first).expect("a cut can be written");
    assert_eq!(serde_json::from_slice::<Cut>(&text).expect("what is written can be read"), first);
    let Some(second) = cuts.next() else { return };

    // To fold two cuts one behind the other, or both at once, comes to the same.
    let (mut apart, mut joined) = (Cut::default(), first.clone());
    apart.fold(&first);
    apart.fold(&second);
    joined.join(second.clone());
    let mut at_once = Cut::default();
    at_once.fold(&joined);
    assert_eq!(apart.advanced, at_once.advanced, "{first:?} and {second:?}");

    #[cfg(feature = "s3")]
    let _ = crate::source::s3::ledger::Ledger::open(&apart, 0);
}
