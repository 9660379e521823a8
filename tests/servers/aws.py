"""What the tests do on the AWS side: make buckets, queues and streams, and put data into them.

Endpoints and credentials come from the environment, as for every AWS client.
"""

import argparse
import concurrent.futures
import csv
import gzip
import hashlib
import itertools
import json
import os
import time

import boto3
from botocore.config import Config

# kinesis-local takes its time over large batches.
PATIENT = Config(read_timeout=120, retries={"max_attempts": 0})

# PutRecords takes 500 records and 5 MiB a call (10 MiB since 2025); this stays far below both.
CALL_RECORDS_MAX = 20

# Calls at once where there are many.
POOL = 8


def bucket(args):
    s3 = boto3.client("s3")
    for name in args.name:
        where = {"LocationConstraint": os.environ["AWS_REGION"]}
        s3.create_bucket(Bucket=name, CreateBucketConfiguration=where)


def announce(args):
    """Makes a queue that a bucket's new objects are announced to; prints its URL."""
    sqs = boto3.client("sqs")
    attributes = {"VisibilityTimeout": str(args.visibility)}
    url = sqs.create_queue(QueueName=args.queue, Attributes=attributes)["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    rule = {"QueueArn": arn, "Events": ["s3:ObjectCreated:*"]}
    boto3.client("s3").put_bucket_notification_configuration(
        Bucket=args.bucket, NotificationConfiguration={"QueueConfigurations": [rule]}
    )
    print(url)


def upload(args):
    s3 = boto3.client("s3")
    for path in args.file:
        s3.upload_file(path, args.bucket, args.prefix + os.path.basename(path))


def depth(args):
    """Prints how many messages a queue holds, seen or not."""
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    found = boto3.client("sqs").get_queue_attributes(QueueUrl=args.url, AttributeNames=names)["Attributes"]
    print(sum(int(found[name]) for name in names))


def drained(args):
    """Waits until a queue holds no message, seen or not."""
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    sqs = boto3.client("sqs")
    while True:
        found = sqs.get_queue_attributes(QueueUrl=args.url, AttributeNames=names)["Attributes"]
        if not any(int(found[name]) for name in names):
            return
        time.sleep(0.1)


def download(args):
    """Copies the objects of a bucket into a folder."""
    s3 = boto3.client("s3")
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=args.bucket, Prefix=args.prefix):
        for found in page.get("Contents", []):
            path = os.path.join(args.folder, os.path.relpath(found["Key"], args.prefix or "."))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            s3.download_file(args.bucket, found["Key"], path)


def remove(args):
    """Removes an object of a bucket."""
    boto3.client("s3").delete_object(Bucket=args.bucket, Key=args.key)


def uploads(args):
    """Prints how many multipart uploads of a bucket are neither completed nor aborted."""
    print(len(boto3.client("s3").list_multipart_uploads(Bucket=args.bucket).get("Uploads", [])))


def parts(args):
    """Prints how many of these uploads hold parts. One that a process began in the moment of its death, before it could
    note the upload's id, holds none, and nobody can find it but the bucket's own lifecycle rule."""
    s3 = boto3.client("s3")
    begun = s3.list_multipart_uploads(Bucket=args.bucket).get("Uploads", [])
    held = (s3.list_parts(Bucket=args.bucket, Key=u["Key"], UploadId=u["UploadId"]).get("Parts", []) for u in begun)
    print(sum(1 for found in held if found))


def secret(args):
    """Puts a secret's value, which becomes AWSCURRENT."""
    secrets = boto3.client("secretsmanager")
    try:
        secrets.put_secret_value(SecretId=args.name, SecretString=args.value)
    except secrets.exceptions.ResourceNotFoundException:
        secrets.create_secret(Name=args.name, SecretString=args.value)


def stream(args):
    kinesis = boto3.client("kinesis", config=PATIENT)
    kinesis.create_stream(StreamName=args.name, ShardCount=args.count)
    until_active(kinesis, args.name)


def listed(name):
    kinesis = boto3.client("kinesis", config=PATIENT)
    pages = kinesis.get_paginator("list_shards").paginate(StreamName=name)
    return [shard for page in pages for shard in page["Shards"]]


def shards(args):
    """Prints the shards of a stream, each with its parents."""
    for shard in listed(args.name):
        parents = [shard[name] for name in ("ParentShardId", "AdjacentParentShardId") if name in shard]
        print(json.dumps({"id": shard["ShardId"], "parents": parents}))


def open_shards(name):
    found = [shard for shard in listed(name) if "EndingSequenceNumber" not in shard["SequenceNumberRange"]]
    return sorted(found, key=lambda shard: int(shard["HashKeyRange"]["StartingHashKey"]))


def until_active(kinesis, name):
    while True:
        found = kinesis.describe_stream_summary(StreamName=name)["StreamDescriptionSummary"]
        if found["StreamStatus"] == "ACTIVE":
            return
        time.sleep(0.05)


def split(args):
    """Splits the first open shard of a stream into halves."""
    kinesis = boto3.client("kinesis", config=PATIENT)
    shard = open_shards(args.name)[0]
    start, end = (int(shard["HashKeyRange"][name]) for name in ("StartingHashKey", "EndingHashKey"))
    middle = str((start + end) // 2 + 1)
    kinesis.split_shard(StreamName=args.name, ShardToSplit=shard["ShardId"], NewStartingHashKey=middle)
    until_active(kinesis, args.name)


def merge(args):
    """Merges the first two open shards of a stream."""
    kinesis = boto3.client("kinesis", config=PATIENT)
    first, second = (shard["ShardId"] for shard in open_shards(args.name)[:2])
    kinesis.merge_shards(StreamName=args.name, ShardToMerge=first, AdjacentShardToMerge=second)
    until_active(kinesis, args.name)


def put(args):
    """Puts documents into a stream, `pack` of them back to back in a record, the records dealt to the shards in turn."""
    kinesis = boto3.client("kinesis", config=PATIENT)
    shards = kinesis.describe_stream_summary(StreamName=args.name)["StreamDescriptionSummary"]["OpenShardCount"]
    starts = [str(2**128 // shards * i) for i in range(shards)]
    packs = iter(lambda: list(itertools.islice(lines, args.pack)), [])
    lines = documents(args.file)
    records = (
        {"Data": "\n".join(pack).encode(), "PartitionKey": str(i), "ExplicitHashKey": starts[i % shards]}
        for i, pack in enumerate(packs)
    )
    while call := list(itertools.islice(records, CALL_RECORDS_MAX)):
        answer = kinesis.put_records(StreamName=args.name, Records=call)
        if answer["FailedRecordCount"]:
            raise SystemExit(f"{answer['FailedRecordCount']} records were refused: {answer['Records']}")


def put_hex(args):
    """Puts records into a stream: the lines of files, in hexadecimal digits."""
    kinesis = boto3.client("kinesis", config=PATIENT)
    lines = (line.strip() for path in args.file for line in open(path))
    records = ({"Data": bytes.fromhex(line), "PartitionKey": str(i)} for i, line in enumerate(lines))
    while call := list(itertools.islice(records, CALL_RECORDS_MAX)):
        answer = kinesis.put_records(StreamName=args.name, Records=call)
        if answer["FailedRecordCount"]:
            raise SystemExit(f"{answer['FailedRecordCount']} records were refused: {answer['Records']}")


def flood(args):
    """Puts objects into a bucket and announces them in a new queue, in no order, some twice and some that are poison;
    prints the queue's URL."""
    s3, sqs = boto3.client("s3", config=Config(max_pool_connections=POOL)), boto3.client("sqs")
    url = sqs.create_queue(QueueName=args.queue)["QueueUrl"]
    random = itertools.count()
    with concurrent.futures.ThreadPoolExecutor(POOL) as pool:
        events = list(pool.map(lambda n: flooding(s3, args.bucket, n), range(args.count)))
    # One in twenty comes again.
    events += events[::20]
    events.sort(key=lambda event: hashlib.md5(f"{next(random)}".encode()).digest())
    bodies = iter([json.dumps({"Records": events[at:at + 2]}) for at in range(0, len(events), 2)])
    calls = iter(lambda: list(itertools.islice(bodies, 10)), [])
    send = lambda call: sqs.send_message_batch(
        QueueUrl=url, Entries=[{"Id": str(at), "MessageBody": body} for at, body in enumerate(call)])
    with concurrent.futures.ThreadPoolExecutor(POOL) as pool:
        list(pool.map(send, calls))
    print(url)


def flooding(s3, bucket, number):
    """Puts one object, and gives the event that announces it. One in a hundred is poison of some kind."""
    key, body = f"in/{number:06}.json", "".join(f'{{"object":{number},"n":{n}}}\n' for n in range(3)).encode()
    poison = number // 100 % 4 if number % 100 == 50 else None
    if poison == 0:
        body = gzip.compress(body, mtime=0)[:15]
    if poison == 1:
        key = f"private/{number:06}.json"
    if poison == 3:
        body = b"what is this"
    etag = hashlib.md5(body).hexdigest()
    if poison != 2:
        s3.put_object(Bucket=bucket, Key=key, Body=body)
    return {
        "eventVersion": "2.1", "eventSource": "aws:s3", "eventName": "ObjectCreated:Put",
        "eventTime": f"2026-01-01T00:00:{number % 60:02}.000Z",
        "s3": {"bucket": {"name": bucket}, "object": {"key": key, "eTag": etag, "size": len(body), "sequencer": "0A"}},
    }


def documents(paths):
    """Gives the documents of files: lines of JSON as they are, rows of gzipped CSV as JSON with typed values."""
    for path in paths:
        if not path.endswith(".csv.gz"):
            with open(path) as lines:
                yield from (line.rstrip("\n") for line in lines)
            continue
        with gzip.open(path, "rt", newline="") as text:
            for row in csv.DictReader(text):
                yield json.dumps({name: typed(name, value) for name, value in row.items()}, separators=(",", ":"))


TEXTS = {"carrier", "tailnum", "origin", "dest", "time_hour"}


def typed(name, value):
    if value == "NA":
        return None
    return value if name in TEXTS else int(value)


def main():
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(required=True)

    def verb(run, *names, **more):
        sub = verbs.add_parser(run.__name__)
        for name in names:
            sub.add_argument(name, type=int if name in ("count", "pack", "visibility") else str)
        for name, nargs in more.items():
            sub.add_argument(name, nargs=nargs)
        sub.set_defaults(run=run)

    verb(bucket, name="+")
    verb(announce, "bucket", "queue", "visibility")
    verb(upload, "bucket", "prefix", file="+")
    verb(depth, "url")
    verb(drained, "url")
    verb(download, "bucket", "prefix", "folder")
    verb(remove, "bucket", "key")
    verb(uploads, "bucket")
    verb(parts, "bucket")
    verb(secret, "name", "value")
    verb(stream, "name", "count")
    verb(shards, "name")
    verb(split, "name")
    verb(merge, "name")
    verb(put, "name", "pack", file="+")
    verb(put_hex, "name", file="+")
    verb(flood, "bucket", "queue", "count")
    args = parser.parse_args()
    args.run(args)


main()
